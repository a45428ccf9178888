"""Green sets, their test, and outputs that carry them: marked text is found, and nothing else is."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.engine_contract import prompt, request
from models_fixture import VOCAB_SIZE
from unit.executor.guide_tokens import compiled
from unit.executor.oracle import run_paged
from weir.inference.v1 import watermark_pb2 as pb
from weir_chassis.errors import InvalidArgument, Unsupported
from weir_executor.guided.guide import GuideKind
from weir_executor.paged.logits import SampleRow, process
from weir_executor.paged.speculation.drafter import SpeculationOptions
from weir_executor.request import GenerationRequest, Sampling, SpeculationMode, Watermark
from weir_executor.watermark.detect import Detection, detect, tail
from weir_executor.watermark.green import are_green, token_words
from weir_executor.watermark.keys import WatermarkKeys, read_keys
from weir_executor.watermark.mapping import to_watermark

_KEYS = WatermarkKeys(b"sixteen bytes or more")
_MARK = Watermark(_KEYS.of("acme"))


def _green(watermark: Watermark, previous: int, vocab_size: int) -> np.ndarray[Any, Any]:
    ids = np.arange(vocab_size)
    return are_green(watermark.key, np.full(vocab_size, previous), ids, watermark.green_fraction)


# ── green sets ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_sampler_marks_is_what_the_test_counts() -> None:
    marks = [None, _MARK, Watermark(_KEYS.of("other"), 0.5, 3.5), replace(_MARK, bias=0.5)]
    rows = [
        SampleRow(Sampling(watermark=mark), 0, [1, 2, previous], 1)
        for mark, previous in zip(marks, (5, 5, 5, 2**31 - 1), strict=True)
    ]
    logits = torch.zeros((4, 1003))
    process(logits, rows)
    for row, found in zip(rows, logits, strict=True):
        mark = row.sampling.watermark
        wanted = np.zeros(1003) if mark is None else _green(mark, row.token_ids[-1], 1003) * mark.bias
        assert torch.equal(found, torch.from_numpy(wanted).float())


def test_green_sets_are_of_the_wanted_size_and_unlike_each_other() -> None:
    sets = {
        (tenant, previous): _green(replace(_MARK, key=_KEYS.of(tenant)), previous, 20_000)
        for tenant in ("acme", "other")
        for previous in (0, 1, 2)
    }
    for green in sets.values():
        assert green.mean() == pytest.approx(0.25, abs=0.015)
    for place, green in sets.items():
        for other, theirs in sets.items():
            if place != other:
                assert (green & theirs).mean() == pytest.approx(0.0625, abs=0.01)


def test_a_tokens_words_do_not_depend_on_the_vocabularys_size() -> None:
    assert np.array_equal(token_words(1001)[:17], token_words(17))
    assert len(np.unique(token_words(100_000))) > 99_990


def test_it_is_the_same_everywhere() -> None:
    """Pinned: a deployed text must be found by every later version."""
    green = _green(Watermark(bytes(range(16))), 7, 64)
    assert np.packbits(green).tobytes().hex() == "0229034045d0f080"


# ── the test ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("least", "count", "probability"), [(0, 5, 0.3), (5, 5, 0.3), (3, 9, 0.25), (30, 60, 0.5)])
def test_the_tail_is_the_sum_of_its_terms(least: int, count: int, probability: float) -> None:
    from math import comb

    terms = [comb(count, k) * probability**k * (1 - probability) ** (count - k) for k in range(least, count + 1)]
    assert tail(least, count, probability) == pytest.approx(sum(terms), rel=1e-12)


def test_the_tail_of_many_does_not_lose_itself() -> None:
    assert 0 < tail(17_000, 65_535, 0.25) < 1e-6
    assert tail(65_535, 65_535, 0.25) == 0.0  # far below what a double can hold
    assert tail(1, 65_535, 0.25) == pytest.approx(1.0)


def test_p_values_of_unmarked_tokens_are_uniform() -> None:
    draw = random.Random(4)
    values = []
    for _ in range(500):
        tokens = [draw.randrange(5000) for _ in range(300)]
        values.append(detect(tokens, draw.randbytes(16), 0.25).p_value)
    assert statistics.mean(values) == pytest.approx(0.5, abs=0.06)
    for level in (0.05, 0.25, 0.5, 0.75):
        assert sum(value <= level for value in values) / 500 == pytest.approx(level, abs=0.08)
    assert min(values) > 1e-5


def test_repetition_is_no_evidence() -> None:
    once = detect([1, 2, 3, 1], _MARK.key, 0.25)
    often = detect([1, 2, 3] * 400, _MARK.key, 0.25)
    assert once == often
    assert once.scored_tokens == 3
    assert detect([1, 1], _MARK.key, 0.25).scored_tokens == 1


# ── outputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _request(key: int, tokens: int = 220, **fields: Any) -> GenerationRequest:
    sampling = fields.pop("sampling", Sampling(seed=key, watermark=_MARK))
    return request(key, prompt(11, start=key), tokens, sampling=sampling, **fields)


def _found(token_ids: list[int], tenant: str = "acme") -> Detection:
    return detect(token_ids, _KEYS.of(tenant), 0.25)


def test_marked_outputs_are_found_and_others_are_not() -> None:
    flat = Sampling(temperature=4.0)  # random weights are all too sure of themselves
    sampled = [_request(key, sampling=replace(flat, seed=key, watermark=replace(_MARK, bias=8.0))) for key in range(4)]
    plain = [_request(key, sampling=replace(flat, seed=key)) for key in range(4, 8)]
    tokens, _ = run_paged("llama3", [*sampled, *plain], num_blocks=200)
    for key in range(4):
        assert _found(tokens[key][:200]).p_value < 1e-6
        assert _found(tokens[key], tenant="other").p_value > 1e-3
    assert all(_found(tokens[key]).p_value > 1e-3 for key in range(4, 8))


def test_a_greedy_output_is_found_too() -> None:
    greedy = Sampling(0.0, watermark=replace(_MARK, bias=6.0))
    tokens, _ = run_paged("llama3", [_request(1, sampling=greedy), _request(2, sampling=Sampling(0.0))])
    assert _found(tokens[1]).p_value < 1e-6
    assert _found(tokens[2]).p_value > 1e-3


def test_preempted_drafted_and_resumed_outputs_draw_the_same_tokens() -> None:
    requests = [_request(key, 40) for key in range(5)]
    undisturbed, _ = run_paged("llama3", requests)
    preempted, ends = run_paged("llama3", requests, num_blocks=9)
    assert sum(end.preemptions for end in ends.values()) > 0
    assert preempted == undisturbed
    repetitive = [replace(r, token_ids=[*r.token_ids] * 4) for r in requests]
    always = SpeculationOptions(mode=SpeculationMode.NGRAM, adaptive=False)
    drafted, ends = run_paged("llama3", repetitive, speculation=always)
    assert sum(end.draft_tokens for end in ends.values()) > 0
    assert drafted == run_paged("llama3", repetitive)[0]
    resumed, _ = run_paged("llama3", [replace(r, resumed={0: undisturbed[r.key][:13]}) for r in requests])
    assert resumed == {key: tokens[13:] for key, tokens in undisturbed.items()}


def test_a_mark_and_a_guide_go_together() -> None:
    guide = compiled(GuideKind.REGEX, "[a-z]{150,}")
    strong = Sampling(temperature=3.0, seed=5, watermark=replace(_MARK, bias=8.0))
    tokens, _ = run_paged("llama3", [_request(1, 150, sampling=strong, guide=guide)])
    assert _found(tokens[1]).p_value < 1e-6


# ── keys and requests ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"  sixteen bytes or more\n")
    assert read_keys(path).of("acme") == _KEYS.of("acme") != _KEYS.of("")
    assert "sixteen" not in repr(read_keys(path)) + repr(_MARK)
    for wrong in (b"short", b"x" * 5000):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="16 to 4096 bytes"):
            read_keys(path)


def test_what_is_asked_for() -> None:
    assert to_watermark("w", pb.Watermark(), "acme", _KEYS) == _MARK
    asked = to_watermark("w", pb.Watermark(green_fraction=0.5, bias=20), "acme", _KEYS)
    assert (asked.green_fraction, asked.bias) == (0.5, 20)
    with pytest.raises(Unsupported, match="no watermark key"):
        to_watermark("w", pb.Watermark(), "acme", None)
    for wrong in (pb.Watermark(green_fraction=0.04), pb.Watermark(bias=0), pb.Watermark(bias=float("nan"))):
        with pytest.raises(InvalidArgument, match=r"w\.(green_fraction|bias)"):
            to_watermark("w", wrong, "acme", _KEYS)


def test_the_vocabulary_of_the_tiny_models_is_marked_whole() -> None:
    assert _green(_MARK, 3, VOCAB_SIZE).shape == (VOCAB_SIZE,)
