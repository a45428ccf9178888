"""Two executors: one computes a prompt, the other takes it over and draws what one alone would have drawn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from contract.executor_contract import GREEDY, Caller, calling, connect, handed_off, prompt_of, until_all_free
from fakes.trtllm.llm import library, never
from models_fixture import tiny_model
from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_chassis.errors import reason_name
from weir_chassis.server import new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback
from weir_executor.engine import Engine
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.model_files import ModelFiles
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import Sampling
from weir_executor.service import serving
from weir_executor.settings import ExecutorSettings
from weir_executor.trtllm.config import Transceiver, TrtConfig
from weir_executor.trtllm.load import load_engine as load_trtllm

if TYPE_CHECKING:
    from weir.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub as Stub

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
FILES = ModelFiles(ModelVersion(model="tiny", revision="r1", tokenizer_hash="t1"), Sampling(), {})
PROMPT = prompt_of(6 * 16 + 5)


def make_fake() -> Engine:
    return FakeEngine(FakeEngineConfig(num_blocks=64, check_integrity=True))


def make_paged() -> Engine:
    config = PagedEngineConfig(
        tiny_model("llama3"), num_blocks=64, max_num_seqs=8, max_batched_tokens=128, num_threads=1, check_integrity=True
    )
    return load_engine(config)


def make_trtllm() -> Engine:
    config = TrtConfig(
        model_dir=tiny_model("llama3"),
        max_model_len=1024,
        block_size=16,
        kv_cache_max_tokens=64 * 16,
        max_num_seqs=8,
        max_batched_tokens=128,
        transceiver=Transceiver(deadline_seconds=60.0),
    )
    return load_trtllm(config, library(), end_process=never)


ENGINES: Mapping[str, Callable[[], Engine]] = {"fake": make_fake, "paged": make_paged, "trtllm": make_trtllm}


@dataclass
class Pair:
    prefill: Stub
    decode: Stub


class _Borrowed:
    """The prefill worker's channel, in the hands of one that opens and closes its own."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> object:
        return getattr(self._channel, name)

    async def close(self, grace: float | None = None) -> None:
        """It is not theirs."""


@asynccontextmanager
async def _served(
    place: str, engine: Engine, role: str, peer: grpc.aio.Channel | None = None, **settings: Any
) -> AsyncIterator[grpc.aio.Channel]:
    chassis = replace(new_chassis("executor"), connect=lambda _: cast("grpc.aio.Channel", _Borrowed(peer)))  # type: ignore[arg-type]
    told = ExecutorSettings.model_validate({"model_dir": Path("unused"), "model": "tiny", "role": role, **settings})
    async with (
        serving(engine, FILES, told, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations) as channel,
    ):
        yield channel
    assert_no_leases(chassis.leases)


@asynccontextmanager
async def pair(
    engine: str, place: str = "memory", prefill: Mapping[str, Any] | None = None, **decode: Any
) -> AsyncIterator[Pair]:
    async with (
        _served(place, ENGINES[engine](), "prefill", **(prefill or {})) as first,
        _served(place, ENGINES[engine](), "decode", first, **decode) as second,
    ):
        yield Pair(connect(first), connect(second))


async def _taken_over(
    caller: Caller, handle: int, handoff: pb.Handoff, first: Mapping[int, list[int]], **f: Any
) -> None:
    handoff.address = "prefill"
    resumed = [pb.ResumedOutput(output_index=index, token_ids=token_ids) for index, token_ids in first.items()]
    await caller.submit(handle, PROMPT, share=True, resumed_outputs=resumed, take_over=handoff, **f)
    await caller.until_told(handle)
    assert not caller.failed, caller.failed


async def _whole(stub: Stub, **fields: Any) -> Caller:
    """A request that is not shared, so that its prompt is computed and no later one finds it."""
    async with calling(stub) as caller:
        await caller.submit(1, PROMPT, **fields)
        await caller.until_told(1)
        return caller


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParameters(temperature=1, seed=7, n=3, logprobs=2)])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("place", PLACES)
async def test_tokens_are_those_of_one_alone(place: str, engine: str, sampling: SamplingParameters) -> None:
    async with pair(engine, place) as workers:
        wanted = await _whole(workers.decode, sampling=sampling, max_tokens=20)
        async with calling(workers.prefill) as first, calling(workers.decode) as second:
            handoff = await handed_off(first, 1, PROMPT, sampling=sampling, max_tokens=20)
            begun = {index: first.tokens[1, index] for index in range(sampling.n or 1)}
            await _taken_over(second, 2, handoff, begun, sampling=sampling, max_tokens=20)
            for index, tokens in begun.items():
                assert [*tokens, *second.tokens[2, index]] == wanted.tokens[1, index]
                logprobs = [*first.logprobs[1, index], *second.logprobs[2, index]]
                assert logprobs == pytest.approx(wanted.logprobs[1, index], abs=1e-4)
            assert second.ended[2].store_cached_tokens == 6 * 16
            await until_all_free(workers.prefill)  # its taker has given it back
        await until_all_free(workers.decode)


@pytest.mark.parametrize("engine", ["fake", "trtllm"])
async def test_a_handoff_that_has_lapsed_is_computed(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL", "1")
    async with pair(engine, prefill={"handoff_lease_seconds": 0.1}) as workers:
        wanted = await _whole(workers.decode, sampling=GREEDY, max_tokens=9)
        async with calling(workers.prefill) as first, calling(workers.decode) as second:
            handoff = await handed_off(first, 1, PROMPT, sampling=GREEDY, max_tokens=9)
            begun = {0: first.tokens[1, 0]}
            await until_all_free(workers.prefill)
            await _taken_over(second, 2, handoff, begun, sampling=GREEDY, max_tokens=9)
            assert [*first.tokens[1, 0], *second.tokens[2, 0]] == wanted.tokens[1, 0]
            assert second.ended[2].store_cached_tokens == 0


@pytest.mark.parametrize("engine", ["fake", "trtllm"])
async def test_blocks_of_another_namespace_are_not_used(engine: str) -> None:
    async with pair(engine) as workers, calling(workers.prefill) as first, calling(workers.decode) as second:
        handoff = await handed_off(first, 1, PROMPT)
        handoff.namespace = bytes(16)
        await _taken_over(second, 2, handoff, {0: first.tokens[1, 0]})
        assert second.ended[2].store_cached_tokens == 0
        await until_all_free(workers.prefill)


async def test_what_the_taker_holds_itself_is_not_read_again() -> None:
    async with pair("fake") as workers, calling(workers.prefill) as first, calling(workers.decode) as second:
        await second.submit(1, PROMPT[: 4 * 16 + 1], share=True)
        await second.until_told(1)
        handoff = await handed_off(first, 1, PROMPT)
        await _taken_over(second, 2, handoff, {0: first.tokens[1, 0]})
        assert (second.ended[2].engine_cached_tokens, second.ended[2].store_cached_tokens) == (4 * 16, 2 * 16)


async def test_a_taker_without_room_computes() -> None:
    async with (
        pair("fake", handoff_read_bytes=64) as workers,
        calling(workers.prefill) as first,
        calling(workers.decode) as second,
    ):
        handoff = await handed_off(first, 1, PROMPT)
        await _taken_over(second, 2, handoff, {0: first.tokens[1, 0]})
        assert second.ended[2].store_cached_tokens == 0
        await until_all_free(workers.prefill)


@pytest.mark.parametrize("engine", ["fake", "trtllm"])
async def test_a_request_that_is_aborted_while_it_takes_over_gives_both_sides_back(engine: str) -> None:
    async with pair(engine) as workers:
        for turns in range(12):
            async with calling(workers.prefill) as first, calling(workers.decode) as second:
                handoff = await handed_off(first, 1, PROMPT)
                handoff.address = "prefill"
                first_tokens = pb.ResumedOutput(output_index=0, token_ids=first.tokens[1, 0])
                await second.submit(2, PROMPT, share=True, resumed_outputs=[first_tokens], take_over=handoff)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await second.abort(2)
                await second.until_told(2)
        await until_all_free(workers.prefill)
        await until_all_free(workers.decode)


async def test_each_role_refuses_what_is_not_its_own() -> None:
    async with pair("fake") as workers:
        assert (await workers.prefill.GetModelInfo(pb.GetModelInfoRequest())).role == pb.EXECUTOR_ROLE_PREFILL
        assert (await workers.decode.GetModelInfo(pb.GetModelInfoRequest())).role == pb.EXECUTOR_ROLE_DECODE
        for stub, hand_off in ((workers.prefill, False), (workers.decode, True)):
            async with calling(stub) as caller:
                await caller.submit(1, PROMPT, share=True, hand_off=hand_off)
                await caller.until_told(1)
                assert reason_name(caller.failed[1].reason) == "UNSUPPORTED"
                assert "role" in caller.failed[1].message
