"""Several ranks, each a process of its own, against `transformers` and against one process: same tokens, same blocks,
and a rank that dies is the end of the engine, not of its patience."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.engine_contract import Listener, request
from models_fixture import save_tiny_model, tiny_model
from unit.executor.oracle import reference_greedy, run_paged
from weir_executor.paged.engine import PagedEngine, PagedEngineConfig, load_engine
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.parallel.group import RankLostError
from weir_executor.request import GenerationRequest, Sampling, StoredPrefix

_TP: dict[str, Any] = {"tensor_parallel": 2}
_PP: dict[str, Any] = {"pipeline_parallel": 2}
_SPREAD = [pytest.param(_TP, id="TP=2"), pytest.param(_PP, id="PP=2")]


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 320, (length,), generator=generator).tolist() for length in (37, 5, 20)]


@pytest.mark.parametrize("spread", _SPREAD)
@pytest.mark.parametrize("family", ["llama3", "llama_yarn", "gemma3", "qwen3_moe"])
def test_the_tokens_are_those_of_transformers(family: str, spread: dict[str, Any]) -> None:
    prompts = _prompts()
    requests = [request(key, prompt, 12) for key, prompt in enumerate(prompts)]
    # Few tokens per step and few blocks: prompts come in chunks, and somebody is preempted.
    tokens, _ = run_paged(
        family, requests, max_batched_tokens=16, max_num_seqs=3, block_size=4, num_blocks=20, **spread
    )
    assert tokens == {key: reference_greedy(family, prompt, 12) for key, prompt in enumerate(prompts)}


def test_both_at_once_draw_as_one_process_draws() -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=11, top_logprobs=2)
    requests = [request(key, prompt, 10, sampling=sampling, n=2) for key, prompt in enumerate(_prompts())]
    assert run_paged("qwen3", requests, **_TP, **_PP)[0] == run_paged("qwen3", requests)[0]


@pytest.mark.parametrize("spread", _SPREAD)
def test_blocks_are_those_of_one_process(spread: dict[str, Any]) -> None:
    prompt, hashes = list(range(3, 36)), [bytes([index]) * 16 for index in range(2)]
    alone, together = (_full_blocks(prompt, hashes, options) for options in ({}, spread))
    assert len(alone) == len(together) == 2
    for one, other in zip(alone, together, strict=True):
        assert len(one) == len(other)
        difference = torch.frombuffer(bytearray(one), dtype=torch.float32) - torch.frombuffer(
            bytearray(other), dtype=torch.float32
        )
        assert difference.abs().max() < 1e-5  # sums over ranks are rounded in another order
    answered, _ = _answer(request(1, prompt, 8, block_hashes=hashes, stored_prefix=StoredPrefix(0, together)), spread)
    assert answered == reference_greedy("llama3", prompt, 8)


def test_a_dead_rank_ends_the_engine_at_once_and_visibly() -> None:
    with _Engine(_TP) as engine:
        (rank,) = multiprocessing.active_children()
        assert rank.pid is not None
        for told_to_all in (signal.SIGINT, signal.SIGTERM):  # rank 0 drains on these, and needs the others for it
            os.kill(rank.pid, told_to_all)
        rank.join(0.3)
        engine.check_health()
        rank.kill()
        with pytest.raises(RankLostError, match="rank 1 died"):
            _wait_for_bad_health(engine)


def test_a_rank_that_dies_under_a_request_fails_it() -> None:
    with _Engine(_PP) as engine:
        heard = Listener()
        engine.start(heard)
        engine.submit(request(1, list(range(3, 40)), 200))
        heard.wait_for(lambda: len(heard.tokens[1, 0]) > 3, "some tokens")
        (rank,) = multiprocessing.active_children()
        rank.kill()
        heard.wait_for_ends(1)
        assert heard.ends[1].error is not None
        with pytest.raises(RankLostError):
            _wait_for_bad_health(engine)


def test_no_process_is_left_behind() -> None:
    with _Engine({**_TP, **_PP}):
        assert len(multiprocessing.active_children()) == 3
    assert not multiprocessing.active_children()


def test_what_a_rank_finds_wrong_with_its_files_is_what_the_engine_says(tmp_path: Path) -> None:
    directory = save_tiny_model("llama3", tmp_path / "cut")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(Exception, match=r"model\.safetensors"):
        load_engine(PagedEngineConfig(directory, num_blocks=8, num_threads=1, **_TP))
    assert not multiprocessing.active_children()


def test_a_model_that_cannot_be_spread_is_refused_before_anything_is_started() -> None:
    with pytest.raises(ModelConfigError, match="2 KV heads cannot be spread over 3 ranks"):
        load_engine(PagedEngineConfig(tiny_model("llama3"), num_blocks=8, tensor_parallel=3))


class _Engine:
    def __init__(self, spread: dict[str, Any]) -> None:
        config = PagedEngineConfig(
            tiny_model("llama3"), num_blocks=64, num_threads=1, emit_full_blocks=True, check_integrity=True, **spread
        )
        self._engine = load_engine(config)

    def __enter__(self) -> PagedEngine:
        return self._engine

    def __exit__(self, *_: object) -> None:
        self._engine.close()


def _answer(generation: GenerationRequest, spread: dict[str, Any]) -> tuple[list[int], list[bytes]]:
    with _Engine(spread) as engine:
        heard = Listener()
        engine.start(heard)
        engine.submit(generation)
        heard.wait_for_ends(generation.key)
        assert not heard.wrongs, heard.wrongs
        return heard.tokens[generation.key, 0], [block.payload for block in heard.full_blocks]


def _full_blocks(prompt: list[int], hashes: list[bytes], spread: dict[str, Any]) -> list[bytes]:
    return _answer(request(1, prompt, 2, block_hashes=hashes), spread)[1]


def _wait_for_bad_health(engine: PagedEngine) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        engine.check_health()
        time.sleep(0.01)
