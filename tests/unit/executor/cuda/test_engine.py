"""The whole engine over the CUDA path: the tokens of the plain one, whatever is launched ahead and thrown away."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

from contract.engine_contract import Listener, request
from models_fixture import tiny_model
from unit.executor.cuda.doubles import compute_by_kernels
from weir_executor.engine import Engine
from weir_executor.paged import engine as engine_module
from weir_executor.paged.cuda.decoder import CudaDecoder
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.step_output import StepOutput

_GREEDY = Sampling(temperature=0.0)
_SAMPLED = [_GREEDY, Sampling(seed=1), Sampling(0.8, top_k=20, top_p=0.9, seed=2), Sampling(min_p=0.1, seed=3)]
_PROMPTS = [[5, 6, 7], [100, 101, 102, 103, 104, 105, 106, 107, 108], [9], [40, 41, 42, 43, 44]]
_LIMITS: dict[str, Any] = {
    "num_blocks": 40,
    "block_size": 4,
    "max_num_seqs": 4,
    "max_batched_tokens": 16,
    "max_model_len": 64,
    "num_threads": 1,
    "kernels": "torch",
    "check_integrity": True,
    "warm_up": False,
}


def _load(device: torch.device | None, **options: Any) -> Engine:
    """By kernels on a device; plain on the CPU without one."""
    config = PagedEngineConfig(tiny_model("llama3"), device=str(device or "cpu"), **{**_LIMITS, **options})
    if device is None or device.type == "cuda":
        return load_engine(config)
    with patch.object(engine_module, "build_compute", lambda workload, *_: compute_by_kernels(workload, device)):
        return load_engine(config)


def _run(engine: Engine, requests: list[GenerationRequest], later_at: int = 0, abort_at: int = 0) -> Listener:
    """All requests to their ends. `later_at`: all but the first come when that has so many tokens; `abort_at`: the
    first is aborted when it has so many."""
    heard, left = Listener(), list(requests)

    def on_step(_: StepOutput | None) -> None:
        tokens = len(heard.tokens[requests[0].key, 0])
        while left and tokens >= later_at:
            engine.submit(left.pop(0))
        if abort_at and tokens >= abort_at:
            engine.abort(requests[0].key)

    heard.on_step = on_step
    engine.start(heard)
    try:
        engine.submit(left.pop(0))
        if not later_at:
            on_step(None)
        heard.wait_for_ends(*(wanted.key for wanted in requests))
        assert not heard.wrongs, heard.wrongs
        assert all(end.error is None for end in heard.ends.values()), heard.ends
        return heard
    finally:
        engine.close()


def _requests(
    max_tokens: list[int], samplings: list[Sampling] | None = None, **options: Any
) -> list[GenerationRequest]:
    return [
        request(key, prompt, wanted, sampling=sampling, **options)
        for key, (prompt, wanted, sampling) in enumerate(zip(_PROMPTS, max_tokens, samplings or _SAMPLED, strict=False))
    ]


class _Flights:
    """What becomes of the steps launched ahead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launched = self.used = self.partly_used = 0
        self.rows_launched = self.rows_used = 0
        launch_next, decode = CudaDecoder._launch_next, CudaDecoder.decode

        def counting_launch(decoder: CudaDecoder, *arguments: Any) -> Any:
            flight = launch_next(decoder, *arguments)
            self.launched += flight is not None
            self.rows_launched += len(flight.rows) if flight is not None else 0
            return flight

        def counting_decode(decoder: CudaDecoder, batch: Any) -> Any:
            known = decoder._ahead.places(batch.rows) if decoder._ahead is not None and batch.plain else {}
            self.rows_used += len(known)
            self.used += len(known) == len(batch.rows)
            self.partly_used += 0 < len(known) < len(batch.rows)
            return decode(decoder, batch)

        monkeypatch.setattr(CudaDecoder, "_launch_next", counting_launch)
        monkeypatch.setattr(CudaDecoder, "decode", counting_decode)


@pytest.fixture
def flights(monkeypatch: pytest.MonkeyPatch) -> _Flights:
    return _Flights(monkeypatch)


def test_tokens_are_the_plain_engines_and_steps_are_launched_ahead(device: torch.device, flights: _Flights) -> None:
    requests = _requests([5, 7, 6])
    expected, found = _run(_load(None), requests), _run(_load(device), requests)
    assert found.tokens == expected.tokens
    # All but the first: each finds its place, also where a new block begins.
    assert flights.used >= 4


def test_a_newcomer_joins_while_a_step_is_under_way(device: torch.device, flights: _Flights) -> None:
    requests = _requests([7, 4, 3])
    expected, found = _run(_load(None), requests), _run(_load(device), requests, later_at=3)
    assert found.tokens == expected.tokens
    assert flights.partly_used >= 1


def test_a_stop_token_is_found_one_step_late_and_nobody_sees_the_token_after_it(
    device: torch.device, flights: _Flights
) -> None:
    plain = _run(_load(None), _requests([9, 9]))
    stop = plain.tokens[0, 0][4]
    requests = _requests([9, 9], stop_token_ids=frozenset({stop}))
    expected, found = _run(_load(None), requests), _run(_load(device), requests)
    assert found.tokens == expected.tokens
    assert len(found.tokens[0, 0]) < 9
    assert flights.rows_launched > flights.rows_used


def test_an_aborted_row_is_dropped_from_the_step_under_way(device: torch.device, flights: _Flights) -> None:
    requests = _requests([40, 8])
    expected, found = _run(_load(None), requests[1:]), _run(_load(device), requests, abort_at=3)
    assert found.tokens[1, 0] == expected.tokens[1, 0]
    assert len(found.tokens[0, 0]) < 40


def test_preemption_changes_no_token(device: torch.device, flights: _Flights) -> None:
    """Blocks for little more than one of them: they take turns, and come back into other blocks."""
    requests = _requests([9, 9, 9], [_GREEDY] * 3)
    small = {"num_blocks": 7, "max_model_len": 28}
    expected, found = _run(_load(None), requests), _run(_load(device, **small), requests)
    assert found.tokens == expected.tokens
    assert sum(end.preemptions for end in found.ends.values()) > 0


def test_penalties_and_logprobs_go_by_the_sampler(device: torch.device, flights: _Flights) -> None:
    samplings = [Sampling(0.0, repetition_penalty=1.3), Sampling(seed=4, top_logprobs=2)]
    requests = _requests([5, 5], samplings)
    expected, found = _run(_load(None), requests), _run(_load(device), requests)
    assert found.tokens == expected.tokens
    for key, ours in found.logprobs.items():
        theirs = [entry.logprob for entry in expected.logprobs[key]]
        assert [entry.logprob for entry in ours] == pytest.approx(theirs, abs=1e-4)
    assert flights.launched == 0


def test_full_blocks_are_read_beside_the_step_under_way(device: torch.device, flights: _Flights) -> None:
    scope = b"contract tests.."
    requests = [request(0, [5, 6, 7], 12, sampling=_GREEDY, ignore_eos=True, cache_scope=scope)]
    expected, found = (_run(_load(d, emit_full_blocks=True), requests) for d in (None, device))
    assert [block.block_hash for block in found.full_blocks] == [block.block_hash for block in expected.full_blocks]
    for ours, theirs in zip(found.full_blocks, expected.full_blocks, strict=True):
        numbers, others = (torch.frombuffer(bytearray(b.payload), dtype=torch.float32) for b in (ours, theirs))
        torch.testing.assert_close(numbers, others, rtol=1e-4, atol=1e-4)
    assert len(found.full_blocks) >= 3
