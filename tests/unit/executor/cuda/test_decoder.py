"""The CUDA decoder against the plain one: tokens, logits and what lies in the cache afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from contract.engine_contract import request
from models_fixture import VOCAB_SIZE, tiny_model
from unit.executor.cuda.doubles import CapturerDouble
from weir_executor.paged.attention import TorchAttention
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.cuda.attention import TritonAttention, max_numbers
from weir_executor.paged.cuda.decode_step import DecodeRow, DecodeSteps
from weir_executor.paged.cuda.decoder import CudaDecoder
from weir_executor.paged.cuda.graphs import CudaGraphs
from weir_executor.paged.cuda.llama import FusedLlama, fused
from weir_executor.paged.decoder import TorchDecoder
from weir_executor.paged.flat_batch import flatten
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.registry import load_config, load_model
from weir_executor.paged.sequence import LiveRequest
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.request import Sampling

_BLOCK, _NUM_BLOCKS, _MAX_ROWS, _GREEDY = 4, 60, 6, Sampling(temperature=0.0)


class _Pair:
    """One model twice, with a cache each: by plain PyTorch, and by the kernels."""

    def __init__(
        self, family: str, device: torch.device, *, captures: bool = False, fails_at: int | None = None
    ) -> None:
        directory = tiny_model(family)
        config = load_config(directory)
        model = load_model(directory, config, 256, torch.float32, device)
        self.device = device
        self.caches = [KvCache(config, _NUM_BLOCKS, _BLOCK, torch.float32, device) for _ in range(2)]
        self.plain = TorchDecoder(model, TorchAttention(self.caches[0], config.attention), device)
        numbers = max_numbers(max_tokens=64, max_rows=_MAX_ROWS, max_blocks=_NUM_BLOCKS)
        attention = TritonAttention(self.caches[1], config.num_heads, config.attention, numbers)
        self.model = fused(model, attention)
        self.capturer: Any = CapturerDouble(fails_at) if device.type == "cpu" else CudaGraphs()
        capturer = self.capturer if captures else None
        self.steps = DecodeSteps(self.model, attention, _MAX_ROWS, _NUM_BLOCKS, capturer)
        self.ours = CudaDecoder(self.steps, TorchDecoder(self.model, attention, device), _BLOCK, device)
        self.rng, self.free = random.Random(1), random.Random(2).sample(range(_NUM_BLOCKS), _NUM_BLOCKS)

    def sequence(self, length: int, sampling: Sampling = _GREEDY) -> LiveSequence:
        tokens = [self.rng.randrange(3, VOCAB_SIZE) for _ in range(length)]
        wanted = request(len(self.free), tokens, 1, sampling=sampling)  # of one token: no step is launched ahead
        live = LiveRequest(wanted, 1, frozenset(), shares_blocks=False, submitted_at=0.0)
        blocks = [self.free.pop() for _ in range(-(-(length + 6) // _BLOCK))]
        return LiveSequence(live, 0, tokens, [], blocks=blocks)

    @torch.inference_mode()
    def step(self, *scheduled: Scheduled) -> list[int]:
        """Both compute it; returns the best token of each row that samples."""
        batch = flatten(scheduled)
        expected, found = self.plain.decode(batch), self.ours.decode(batch)
        assert list(found.sound) == list(expected.sound)
        if expected.logits is None:
            return []
        best = expected.logits.argmax(-1).tolist()
        if batch.plain:
            assert found.drawn == best
        else:
            assert found.logits is not None
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
        self.same_blocks([block for row in batch.rows for block in row.blocks])
        return [int(token) for token in best]

    def best(self, scheduled: Scheduled) -> int:
        """By plain PyTorch alone."""
        logits = self.plain.decode(flatten([scheduled])).logits
        assert logits is not None
        return int(logits.argmax())

    def same_blocks(self, block_ids: Sequence[int]) -> None:
        expected, found = (
            torch.frombuffer(bytearray(b"".join(cache.read_blocks(block_ids))), dtype=torch.float32)
            for cache in self.caches
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Whatever a family has that the fused layers do not, runs unfused over the same attention.
_FUSED = {"llama_yarn": True, "mistral": True, "qwen3": True, "gemma3": False}


@pytest.mark.parametrize("family", _FUSED)
def test_chunks_and_decodes_come_to_what_plain_pytorch_gives(device: torch.device, family: str) -> None:
    pair = _Pair(family, device)
    assert isinstance(pair.model, FusedLlama) == _FUSED[family]
    sequences = [pair.sequence(length) for length in (5, 1, 19)]
    pair.step(Scheduled(sequences[0], 0, 5), Scheduled(sequences[1], 0, 1), Scheduled(sequences[2], 0, 9))
    pair.step(Scheduled(sequences[2], 9, 10))
    for _ in range(2):
        rows = []
        for sequence in sequences:
            sequence.token_ids.append(pair.rng.randrange(3, VOCAB_SIZE))
            rows.append(Scheduled(sequence, len(sequence.token_ids) - 1, 1))
        pair.step(*rows)


def test_a_batch_is_padded_to_the_next_size_and_nothing_is_captured_twice(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("counts the double's calls")
    pair = _Pair("llama3", device, captures=True)
    sequences = [pair.sequence(1) for _ in range(5)]
    for count, size in ((1, 1), (3, 4), (4, 4), (5, 6), (2, 2)):
        pair.step(*(Scheduled(sequence, 0, 1) for sequence in sequences[:count]))
        assert pair.capturer.replays[-1] == size
        assert pair.capturer.captures == len(pair.steps.sizes) == 4  # 1, 2, 4 and 6, all at the first step


def test_padding_writes_nowhere(device: torch.device) -> None:
    pair = _Pair("llama3", device, captures=True)
    for cache in pair.caches:
        for layer in range(3):
            for blocks in cache.layer_blocks(layer):
                blocks.fill_(0.5)
    pair.step(*(Scheduled(pair.sequence(1), 0, 1) for _ in range(3)))
    pair.same_blocks(range(_NUM_BLOCKS))


def test_logits_are_given_where_more_than_the_best_is_asked_for(device: torch.device) -> None:
    pair = _Pair("qwen3", device)
    penalised = Sampling(temperature=0.0, repetition_penalty=1.2)
    pair.step(*(Scheduled(pair.sequence(1, sampling), 0, 1) for sampling in (_GREEDY, penalised, _GREEDY)))


def test_what_cannot_be_captured_runs_uncaptured(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    if device.type == "cuda":
        pytest.skip("the double fails on demand")
    pair = _Pair("llama3", device, captures=True, fails_at=2)
    pair.step(*(Scheduled(pair.sequence(1), 0, 1) for _ in range(2)))
    assert "uncaptured: this cannot be recorded" in caplog.text
    assert pair.capturer.replays == []


def test_a_row_that_is_not_finite_is_alone_in_that(device: torch.device) -> None:
    pair = _Pair("llama3", device)
    sick, well = pair.sequence(1), pair.sequence(1)
    sick.token_ids.append(7)
    for cache in pair.caches:
        cache.layer_blocks(0)[0][sick.blocks[0], :, 0] = torch.nan
    with torch.inference_mode():
        batch = flatten([Scheduled(sick, 1, 1), Scheduled(well, 0, 1)])
        expected, found = pair.plain.decode(batch), pair.ours.decode(batch)
    assert expected.logits is not None
    assert found.drawn is not None
    for row, (sound, best) in enumerate(zip(found.sound, found.drawn, strict=True)):
        is_sick = batch.rows[row].sequence is sick
        assert sound != is_sick
        assert is_sick or best == int(expected.logits[row].argmax())


@torch.inference_mode()
def test_a_step_goes_on_from_draws_that_the_host_has_not_seen(device: torch.device) -> None:
    """Three steps launched one after the other are the three steps with their tokens carried over by hand."""
    pair = _Pair("llama3", device, captures=True)
    pair.steps.warm_up()
    sequences = [pair.sequence(1) for _ in range(3)]
    rows = [DecodeRow(0, s.blocks, s.token_ids[0]) for s in sequences]
    pair.steps.launch(rows)
    pair.steps.draws(3)
    # The next step's rows are in another order, and one of them is the host's own.
    pair.steps.launch([DecodeRow(1, sequences[i].blocks, 9, source=i) for i in (2, 0)])
    draws = pair.steps.draws(2)
    expected = [pair.best(Scheduled(sequence, 0, 1)) for sequence in sequences]
    for sequence, token_id in zip(sequences, expected, strict=True):
        sequence.token_ids.append(token_id)
    assert draws.wait() == [pair.best(Scheduled(sequences[i], 1, 1)) for i in (2, 0)]
