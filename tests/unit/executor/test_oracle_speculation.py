"""Tokens with speculation are those without, greedy and sampled, however the step loop cuts and mixes them."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contract.engine_contract import hashes, prompt, request
from models_fixture import tiny_model
from unit.executor.oracle import reference_greedy, reference_logits, run_paged
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.speculation.drafter import SpeculationOptions
from weir_executor.request import GenerationRequest, Sampling, SpeculationMode
from weir_executor.step_output import RequestEnd

_NGRAM, _DRAFT_MODEL = SpeculationMode.NGRAM, SpeculationMode.DRAFT_MODEL
_MODES = (_NGRAM, _DRAFT_MODEL)
_SAMPLINGS = [
    Sampling(0.0),
    Sampling(0.7, seed=11),
    Sampling(1.0, top_p=0.9, seed=12),
    Sampling(1.1, top_k=20, min_p=0.01, seed=13),
    Sampling(0.8, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, seed=14),
    Sampling(0.9, logit_bias={5: 4.0, 9: -3.0}, top_logprobs=3, seed=15),
]
_FAMILIES = ("llama2", "mistral", "qwen3")
_MAX_TOKENS = 24
_TEMPERATURE = 12.0
# A bias towards a few tokens makes even random weights repeat themselves.
_REPETITIVE = Sampling(0.6, logit_bias=dict.fromkeys(range(40, 44), 14.0), seed=21)


def _always(mode: SpeculationMode = _NGRAM, draft: str = "", blur: float = 0.02) -> dict[str, Any]:
    """`draft` names a model; with no blur it is the very one that it guesses for."""
    options = {"speculation": SpeculationOptions(mode=mode, max_draft_tokens=5, adaptive=False)}
    return {**options, "draft_model_dir": _blurred(draft, blur)} if mode is _DRAFT_MODEL else options


@cache
def _blurred(family: str, blur: float) -> Path:
    """The tiny model with some noise in its weights, so that it thinks alike and not the same."""
    root = Path(tempfile.mkdtemp(prefix="weir-draft-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    model_dir = Path(shutil.copytree(tiny_model(family), root / family))
    weights, generator = load_file(model_dir / "model.safetensors"), torch.Generator().manual_seed(3)
    noisy = {name: weight + blur * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    save_file(noisy, model_dir / "model.safetensors", metadata={"format": "pt"})
    return model_dir


def _prompt(key: int) -> list[int]:
    """Of repeated pieces, so that there is something to look up."""
    piece = prompt(7 + key, start=key)
    return piece * 3 + piece[:2]


def _requests(**fields: Any) -> list[GenerationRequest]:
    return [
        request(
            key,
            _prompt(key),
            _MAX_TOKENS,
            sampling=replace(_REPETITIVE, temperature=0.0) if key == 5 else _REPETITIVE,
            block_hashes=hashes(_prompt(key), 16),
            cache_scope=b"speculation",
            **fields,
        )
        for key in range(6)
    ]


def _share(ends: dict[int, RequestEnd]) -> float:
    """Of drafts that stood."""
    return sum(end.accepted_draft_tokens for end in ends.values()) / sum(end.draft_tokens for end in ends.values())


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("family", _FAMILIES)
def test_drafts_that_stand_change_no_token(family: str, mode: SpeculationMode) -> None:
    plain, plain_ends = run_paged(family, _requests())
    tokens, ends = run_paged(family, _requests(), **_always(mode, family))
    assert tokens == plain
    assert 0.05 < _share(ends) < 0.95
    assert not any(end.draft_tokens for end in plain_ends.values())


@pytest.mark.parametrize("family", _FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family: str) -> None:
    generations = [request(key, prompt(10 + 17 * key, start=key), _MAX_TOKENS) for key in range(5)]
    tokens, ends = run_paged(family, generations, **_always(_DRAFT_MODEL, family), max_batched_tokens=60)
    assert tokens == {g.key: reference_greedy(family, list(g.token_ids), _MAX_TOKENS) for g in generations}
    assert 0.05 < _share(ends) < 0.95


@pytest.mark.parametrize("sampling", _SAMPLINGS)
def test_however_tokens_are_drawn(sampling: Sampling) -> None:
    generations = [request(key, prompt(9 + 8 * key), _MAX_TOKENS, sampling=sampling, n=2) for key in range(3)]
    plain, _ = run_paged("qwen3", generations)
    tokens, ends = run_paged("qwen3", generations, **_always(_DRAFT_MODEL, "qwen3"))
    assert tokens == plain
    assert _share(ends) > 0.05


@pytest.mark.parametrize("sampling", _SAMPLINGS)
def test_a_draft_model_that_thinks_the_same_draws_the_same(sampling: Sampling) -> None:
    """Every draft stands, sampled or not: both models draw with the same numbers."""
    generations = [request(key, prompt(9 + 30 * key), 25, sampling=sampling) for key in range(3)]
    always = _always(_DRAFT_MODEL, "qwen3", blur=0.0)
    tokens, ends = run_paged("qwen3", generations, **always)
    assert _share(ends) == 1.0
    assert tokens == run_paged("qwen3", generations)[0]
    assert [end.draft_tokens for _, end in sorted(ends.items())] == [20, 20, 20]


def test_a_draft_model_of_another_family_and_a_shorter_context(tmp_path: Path) -> None:
    draft = Path(shutil.copytree(tiny_model("llama2"), tmp_path / "draft"))
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 60}))
    generations = [request(key, prompt(30 * key + 20), _MAX_TOKENS) for key in range(3)]
    plain, _ = run_paged("qwen3", generations)
    options: dict[str, Any] = {
        "speculation": SpeculationOptions(_DRAFT_MODEL, 5, adaptive=False),
        "draft_model_dir": draft,
    }
    tokens, ends = run_paged("qwen3", generations, **options)
    assert tokens == plain
    assert ends[0].draft_tokens > 0
    assert ends[2].draft_tokens == 0, "it begins beyond what the draft model can place"


def test_a_draft_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    draft = Path(shutil.copytree(tiny_model("llama2"), tmp_path / "draft"))
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "vocab_size": 321}))
    with pytest.raises(ModelConfigError, match="draft_model_dir: a vocabulary of 321, the model's is 320"):
        load_engine(PagedEngineConfig(tiny_model("llama2"), num_blocks=8, draft_model_dir=draft))


def test_kv_of_both_models_counts_as_memory() -> None:
    both = PagedEngineConfig(tiny_model("qwen3"), kv_cache_bytes=1 << 20, draft_model_dir=tiny_model("llama2"))
    alone = replace(both, draft_model_dir=None)
    with_draft, without = load_engine(both), load_engine(alone)
    draft_bytes = load_engine(replace(alone, model_dir=tiny_model("llama2"))).info.block_bytes
    assert with_draft.info.num_blocks == (1 << 20) // (without.info.block_bytes + draft_bytes)
    assert with_draft.info.speculation_modes == (_NGRAM, _DRAFT_MODEL)


@pytest.mark.parametrize("mode", _MODES)
def test_beside_neighbours_that_do_without(mode: SpeculationMode) -> None:
    plain, _ = run_paged("qwen3", _requests())
    mixed = [replace(g, speculation=SpeculationMode.OFF if g.key % 2 else None) for g in _requests()]
    tokens, ends = run_paged("qwen3", mixed, **_always(mode, "qwen3"), max_batched_tokens=40, max_num_seqs=6)
    assert tokens == plain
    assert [end.draft_tokens > 0 for _, end in sorted(ends.items())] == [True, False] * 3


@pytest.mark.parametrize("mode", _MODES)
def test_preempted(mode: SpeculationMode) -> None:
    plain, _ = run_paged("qwen3", _requests())
    tokens, ends = run_paged("qwen3", _requests(), **_always(mode, "qwen3"), num_blocks=12, max_num_seqs=6)
    assert tokens == plain
    assert sum(end.preemptions for end in ends.values()) > 0
    assert _share(ends) > 0.05


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("cut", [1, 11, 23])
def test_resumed(cut: int, mode: SpeculationMode) -> None:
    plain, _ = run_paged("qwen3", _requests())
    resumed = [replace(g, resumed={0: plain[g.key][:cut]}) for g in _requests()]
    tokens, _ = run_paged("qwen3", resumed, **_always(mode, "qwen3"))
    assert tokens == {key: whole[cut:] for key, whole in plain.items()}


@pytest.mark.parametrize("mode", _MODES)
def test_outputs_of_one_prompt_and_blocks_of_one_token(mode: SpeculationMode) -> None:
    generation = request(1, _prompt(3), _MAX_TOKENS, n=3, sampling=_REPETITIVE)
    plain, _ = run_paged("llama2", [generation])
    tokens, ends = run_paged("llama2", [generation], **_always(mode, "llama2"), block_size=1, num_blocks=300)
    assert tokens == plain
    assert ends[1].completion_tokens == 3 * _MAX_TOKENS
    assert ends[1].accepted_draft_tokens > 0


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_whichever_kernels_compute(kernels: str) -> None:
    """And in chunks, where the draft model catches up with a prompt that is longer than a pass."""
    generations = [request(key, prompt(80, start=key), _MAX_TOKENS) for key in range(3)]
    options = {**_always(_DRAFT_MODEL, "llama3"), "kernels": kernels, "max_batched_tokens": 33}
    tokens, ends = run_paged("llama3", generations, **options)
    assert tokens == {g.key: reference_greedy("llama3", list(g.token_ids), _MAX_TOKENS) for g in generations}
    assert _share(ends) > 0.05


def test_a_prefix_that_others_computed_is_drafted_on_at_once() -> None:
    """The draft model's KV of a shared block is there too, and one that the store brought it computes by itself."""
    beginning = prompt(64, start=77)
    generations = []
    for key in range(4):
        token_ids = beginning + prompt(20, start=key)
        known = hashes(token_ids, 16)
        generations.append(request(key, token_ids, 25, block_hashes=known, cache_scope=b"speculation"))
    tokens, ends = run_paged("qwen3", generations, **_always(_DRAFT_MODEL, "qwen3", blur=0.0), max_batched_tokens=40)
    assert tokens == run_paged("qwen3", generations)[0]
    assert sum(end.cached_prompt_tokens for end in ends.values()) == 3 * 64
    assert _share(ends) == 1.0


def test_the_distribution_is_the_models_own() -> None:
    """Pairs of tokens of many seeds, drafted at every turn, against the probabilities that transformers gives (χ²)."""
    letters = range(40, 46)
    # Every pair of letters stands in the prompt, so that each step after the first has a draft.
    token_ids = [letter for first in letters for second in letters for letter in (first, second)]
    sampling = Sampling(_TEMPERATURE, top_k=6, logit_bias=dict.fromkeys(letters, 100.0))
    generations = [request(seed, token_ids, 3, sampling=replace(sampling, seed=seed)) for seed in range(3000)]
    roomy: dict[str, Any] = {"num_blocks": 4000, "max_waiting": 4000, "max_batched_tokens": 8192}
    tokens, ends = run_paged("llama2", generations, **_always(), **roomy)
    accepted, drafted = (
        sum(getattr(end, name) for end in ends.values()) for name in ("accepted_draft_tokens", "draft_tokens")
    )
    assert drafted == 3000
    assert 0.05 < accepted / drafted < 0.6
    first = _probabilities(token_ids, letters)
    pairs = {
        (one, two): first[one] * second
        for one in letters
        for two, second in _probabilities([*token_ids, one], letters).items()
    }
    _assert_drawn_from(Counter((drawn[0], drawn[1]) for drawn in tokens.values()), pairs)


def _probabilities(token_ids: list[int], letters: range) -> dict[int, float]:
    """Of the next token; the bias leaves nothing to others."""
    scores = reference_logits("llama2", token_ids)[-1][list(letters)] / _TEMPERATURE
    return dict(zip(letters, scores.softmax(dim=-1).tolist(), strict=True))


def _assert_drawn_from(counts: Counter[tuple[int, int]], probabilities: dict[tuple[int, int], float]) -> None:
    """Pearson's χ² over all cells expected at least five times; one true sample in a thousand fails."""
    total = counts.total()
    cells = [(counts[pair], p * total) for pair, p in probabilities.items() if p * total >= 5]
    assert len(cells) >= 20
    assert sum(seen for seen, _ in cells) >= 0.98 * total
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty's approximation of the quantile.
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3, (statistic, freedom)
