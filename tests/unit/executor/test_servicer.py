"""A caller is slow, the queue is full, the engine fails, the service stops: who is told what, and who is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from contract.executor_contract import Caller, calling, connect, prompt_of, submit, until_idle, watch
from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_chassis.errors import Internal, WorkerLost, reason_name
from weir_chassis.server import Chassis, Servicers, announce, new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.live_requests import LiveRequest, LiveRequests
from weir_executor.model_files import ModelFiles
from weir_executor.paged.tenants import TenantLimits, Tenants
from weir_executor.replies import to_unknown_state
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.service import SERVICE_NAME, serving
from weir_executor.settings import ExecutorSettings
from weir_executor.step_output import RequestEnd, StepOutput

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
FILES = ModelFiles(ModelVersion(model="tiny", revision="r1", tokenizer_hash="t1"), Sampling(), {})


@dataclass
class House:
    engine: FakeEngine
    chassis: Chassis
    servicers: Servicers
    stub: Any


@asynccontextmanager
async def house(
    place: str = "memory", *, buffer: int = 262_144, hang_seconds: float = 300.0, **limits: Any
) -> AsyncIterator[House]:
    """An executor around a fake engine. Whatever happens in it, nothing is held at its end."""
    chassis = new_chassis("executor")
    engine = FakeEngine(FakeEngineConfig(check_integrity=True, **limits))
    settings = ExecutorSettings(
        model_dir=Path("unused"), model="tiny", stream_buffer_entries=buffer, hang_seconds=hang_seconds
    )
    async with (
        serving(engine, FILES, settings, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations, health=chassis.health) as channel,
    ):
        announce(chassis, servicers)
        yield House(engine, chassis, servicers, connect(channel))
    assert_no_leases(chassis.leases)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # of things that have no event to wait for
            await asyncio.sleep(0.005)


# ── a caller that does not read ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", PLACES)
async def test_a_caller_that_does_not_read_loses_its_stream_and_its_neighbour_does_not_notice(place: str) -> None:
    limits: dict[str, Any] = {"max_model_len": 16_384, "num_blocks": 16_384, "max_num_seqs": 64}
    async with house(place, buffer=2000, **limits) as home, calling(home.stub) as slow, calling(home.stub) as quick:
        wide = SamplingParameters(temperature=1, seed=1, n=16, logprobs=20)
        for handle in range(3):
            await slow.submit(handle, sampling=wide, max_tokens=None)
        await quick.submit(1, max_tokens=300)
        await quick.until_told(1)
        assert len(quick.tokens[1, 0]) == 300
        # The slow one still has not read: its requests are gone all the same.
        load = await until_idle(home.stub)
        assert load.free_blocks == load.total_blocks
        error = await slow.error()
        assert reason_name(error.reason) == "SLOW_CONSUMER"
        assert "the limit is 2000" in error.message


async def test_what_a_slow_caller_missed_comes_in_few_messages() -> None:
    async with house(step_seconds=0.001) as home, calling(home.stub) as caller:
        await caller.submit(1, max_tokens=400)
        await caller.until_tokens(1, 1)
        await until(lambda: home.engine.load().running_sequences == 0)
        await caller.until_told(1)
        assert len(caller.tokens[1, 0]) == 400
        assert len(caller.messages) < 100, "the steps that waited were merged"


async def test_refusals_count_against_the_buffer_too() -> None:
    async with house(buffer=64) as home, calling(home.stub) as caller:
        bad = submit(caller.info, 1)
        bad.priority = 1000
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # until the stream is over, as it should be
            for _ in range(5000):
                await caller.send(bad)
        error = await caller.error()
        assert reason_name(error.reason) == "SLOW_CONSUMER"


# ── who waits, and for what ───────────────────────────────────────────────────────────────────────────────────────────


async def test_requests_are_listed_with_why_they_wait_even_while_the_engine_hangs() -> None:
    async with house(max_num_seqs=1, step_seconds=0.002) as home, calling(home.stub) as caller:
        await caller.submit(1, request_id="first", tenant="acme", priority=3, max_tokens=900)
        await caller.until_tokens(1, 2)
        home.engine.hang()
        await caller.submit(2, request_id="second", sampling=SamplingParameters(n=2))
        await until(lambda: len(home.engine.requests()) == 2)
        first, second = (await home.stub.ListRequests(pb.ListRequestsRequest())).requests
        assert (first.request_id, first.tenant, first.priority) == ("first", "acme", 3)
        assert (first.running_sequences, first.waiting_sequences, first.waiting_reason) == (1, 0, 0)
        assert first.prompt_tokens == 10
        assert 11 <= first.computed_tokens <= 16 * first.blocks
        assert first.completion_tokens >= 2
        assert first.age.nanos
        assert (second.request_id, second.tenant, second.waiting_sequences) == ("second", "", 2)
        # The step that hangs may be the one that has just taken it in.
        assert second.waiting_reason in (pb.WAITING_REASON_NEW, pb.WAITING_REASON_NO_SLOT)
        home.engine.resume()
        await caller.until_tokens(1, 50)
        *_, second = (await home.stub.ListRequests(pb.ListRequestsRequest())).requests
        assert second.waiting_reason == pb.WAITING_REASON_NO_SLOT
        await caller.until_told(1, 2)
        assert not (await home.stub.ListRequests(pb.ListRequestsRequest())).requests


async def test_the_load_tells_of_the_newest_batch_and_of_all_before() -> None:
    async with house(max_batched_tokens=64) as home, calling(home.stub) as caller:
        assert not (await home.stub.GetLoad(pb.GetLoadRequest())).HasField("prefill_token_seconds")
        await caller.submit(1, prompt_of(100), max_tokens=5)
        await caller.until_told(1)
        load = await until_idle(home.stub)
        assert load.prefill_token_seconds > 0
        assert load.outstanding_prefill_tokens == 0
        assert (load.prefill_tokens, load.decode_tokens, load.chunk_tokens) == (100, 4, 64)
        batch = load.last_batch
        assert (batch.sequences, batch.prefill_tokens, batch.decode_tokens, batch.draft_tokens) == (1, 0, 1, 0)
        assert batch.duration.nanos


async def test_a_quota_that_could_never_hold_a_request_is_named() -> None:
    tenants = Tenants({"*": TenantLimits(max_blocks=4)})
    async with house(tenants=tenants) as home, calling(home.stub) as caller:
        await caller.submit(1, tenant="acme", max_tokens=100)
        await caller.until_told(1)
        assert reason_name(caller.failed[1].reason) == "QUOTA_EXCEEDED"
        assert "the limit is 4" in caller.failed[1].message


# ── the engine says no ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with house(max_waiting=2, max_num_seqs=1) as home, calling(home.stub) as caller:
        for handle in range(30):
            await caller.submit(100 + handle, max_tokens=2)
            await caller.until_told(100 + handle)
        home.engine.hang()
        for handle in range(8):
            await caller.submit(handle)
        await caller.until_told(7)
        assert reason_name(caller.failed[7].reason) == "OVERLOADED"
        status = caller.failed[7].status  # type: ignore[attr-defined]
        assert any(detail.type_url.endswith("RetryInfo") for detail in status.details)
        home.engine.resume()
        await caller.until_told(*range(8))
        assert set(caller.ended) | set(caller.failed) == {*range(8), *range(100, 130)}
        assert 0 in caller.ended


async def test_a_request_that_fails_leaves_its_neighbour() -> None:
    async with house() as home, calling(home.stub) as caller:
        home.engine.fail_request(1, WorkerLost("its blocks are gone"))
        await caller.submit(1)
        await caller.until_told(1)
        await caller.submit(2)
        await caller.until_told(2)
        assert reason_name(caller.failed[1].reason) == "WORKER_LOST"
        assert 2 in caller.ended


async def test_a_failed_step_fails_its_requests_and_not_the_stream() -> None:
    async with house() as home, calling(home.stub) as caller:
        home.engine.fail_step(RuntimeError("secret words of a prompt"))
        await caller.submit(1)
        await caller.until_told(1)
        assert reason_name(caller.failed[1].reason) == "INTERNAL"
        assert "secret" not in caller.failed[1].message
        await caller.submit(2)
        await caller.until_told(2)
        assert 2 in caller.ended


@pytest.mark.parametrize("place", PLACES)
async def test_a_dead_engine_ends_every_stream_and_health_says_so(place: str) -> None:
    async with house(place) as home, calling(home.stub) as caller, calling(home.stub) as idle:
        watcher = watch(home.stub)
        await watcher.read()
        await idle.abort(1)
        await caller.submit(1, max_tokens=None)
        await caller.until_tokens(1, 1)
        assert home.chassis.health.is_serving(SERVICE_NAME)
        home.engine.die()
        for stream in (caller, idle):
            assert reason_name((await stream.error()).reason) == "INTERNAL"
        assert reason_name(caller.failed[1].reason) == "WORKER_LOST", "it heard its last word before the stream ended"
        with pytest.raises(grpc.aio.AioRpcError, match="the engine stopped"):
            while True:
                await watcher.read()
        await asyncio.wait_for(home.chassis.background.failed.wait(), 5)
        assert not any(home.chassis.health.names().values())


async def test_an_engine_that_hangs_ends_every_stream_and_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weir_executor.engine_watch._WATCH_SECONDS", 0.02)
    async with house(hang_seconds=0.2) as home, calling(home.stub) as caller:
        await asyncio.sleep(0.3)
        assert home.chassis.background.failure is None, "without work there is no step to end"
        home.engine.hang()
        await caller.submit(1)
        assert reason_name((await caller.error()).reason) == "INTERNAL"
        await asyncio.wait_for(home.chassis.background.failed.wait(), 5)
        assert "has not ended a step for 0.2 s" in str(home.chassis.background.failure)
        assert not home.chassis.health.is_serving(SERVICE_NAME)


async def test_a_slow_engine_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weir_executor.engine_watch._WATCH_SECONDS", 0.02)
    async with house(hang_seconds=0.2, step_seconds=0.05) as home, calling(home.stub) as caller:
        await caller.submit(1, max_tokens=12)
        await caller.until_told(1)
        assert home.chassis.background.failure is None


async def test_a_bug_in_routing_ends_every_stream_and_the_process() -> None:
    """Swallowed by the event loop, it would leave requests that wait for ever."""
    async with house() as home, calling(home.stub) as caller:
        await caller.abort(1)
        home.engine._loop._deliver(StepOutput(ended=[RequestEnd(99, 0, 0, 0, 0)]))
        assert reason_name((await caller.error()).reason) == "INTERNAL"
        await asyncio.wait_for(home.chassis.background.failed.wait(), 5)
        assert isinstance(home.chassis.background.failure, AssertionError)


# ── deadlines and loads ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_deadline_passes_while_the_engine_hangs() -> None:
    async with house() as home, calling(home.stub) as caller:
        home.engine.hang()
        sent = submit(caller.info, 1)
        sent.time_left.FromMilliseconds(30)
        await caller.send(sent)
        await caller.until_told(1)
        assert reason_name(caller.failed[1].reason) == "DEADLINE_EXCEEDED"
        assert home.chassis.leases.counts() == {"stream": 1, "slot": 1}, "the engine has not let go of it yet"
        home.engine.resume()
        await until(lambda: home.chassis.leases.counts() == {"stream": 1})


async def test_cancelling_the_stream_reaches_the_engine_before_its_next_step() -> None:
    async with house() as home, calling(home.stub) as caller:
        for handle in range(8):
            await caller.submit(handle, prompt_of(30, handle), max_tokens=None)
        await caller.until_tokens(7, 1)
        home.engine.hang()
        await asyncio.sleep(0.02)
        step = home.engine.load().step
        caller.call.cancel()
        await until(lambda: "stream" not in home.chassis.leases.counts())
        home.engine.resume()
        await until_idle(home.stub)
        assert home.engine.load().step <= step + 2, "the step that hung, and the one that saw the abort"
        assert home.engine.load().free_blocks == home.engine.load().total_blocks


async def test_load_counts_streams_and_requests() -> None:
    async with house() as home, calling(home.stub) as caller, calling(home.stub) as other:
        home.engine.hang()
        await other.abort(1)
        for handle in range(3):
            await caller.submit(handle)
        await until(lambda: home.chassis.leases.counts() == {"stream": 2, "slot": 3})
        load = await home.stub.GetLoad(pb.GetLoadRequest())
        assert (load.live_streams, load.live_requests, load.waiting_requests) == (2, 3, 3)
        home.engine.resume()
        await caller.until_told(0, 1, 2)


# ── draining ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", PLACES)
async def test_a_drain_refuses_the_new_and_finishes_the_old(place: str) -> None:
    async with house(place, step_seconds=0.001) as home, calling(home.stub) as caller, calling(home.stub) as idle:
        watcher = watch(home.stub)
        await watcher.read()
        await idle.abort(1)
        await caller.submit(1, max_tokens=100)
        await caller.until_tokens(1, 1)
        assert home.servicers.drain is not None
        await home.servicers.drain()
        assert reason_name((await idle.error()).reason) == "DRAINING", "nothing lived on it"
        await caller.submit(2)
        await caller.until_told(1, 2)
        assert reason_name(caller.failed[2].reason) == "DRAINING"
        assert len(caller.tokens[1, 0]) == 100
        assert reason_name((await caller.error()).reason) == "DRAINING"
        with pytest.raises(grpc.aio.AioRpcError, match="shutting down"):
            while True:
                await watcher.read()


async def test_closing_the_service_ends_what_still_lives() -> None:
    async with house() as home:
        caller = Caller(home.stub, await home.stub.GetModelInfo(pb.GetModelInfoRequest()))
        await caller.submit(1, max_tokens=None)
        await caller.until_tokens(1, 1)
    # `house` has found no lease left.


async def test_a_bug_in_a_command_ends_the_stream_as_internal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret words of a prompt")

    async with house() as home, calling(home.stub) as caller:
        monkeypatch.setattr("weir_executor.admission.to_request", broken)
        await caller.submit(1)
        error = await caller.error()
        assert error.reason == Internal.reason
        assert "secret" not in error.message


def test_a_request_that_the_engine_does_not_know_is_being_prepared_or_has_just_ended() -> None:
    requests = LiveRequests(new_chassis("executor").leases)
    wanted = GenerationRequest(7, [1, 2, 3], 5, n=2, tenant="acme", priority=1)
    live = LiveRequest(wanted, 1, SimpleNamespace())  # nobody listens
    requests.add(live, "r-7")
    assert to_unknown_state(live, 1.5).waiting_reason == pb.WAITING_REASON_UNSPECIFIED
    live.preparing = SimpleNamespace()  # type: ignore[assignment]  # a task, as far as is looked
    state = to_unknown_state(live, 1.5)
    assert (state.request_id, state.tenant, state.priority, state.prompt_tokens) == ("r-7", "acme", 1, 3)
    assert (state.waiting_sequences, state.waiting_reason) == (2, pb.WAITING_REASON_STORED_PREFIX)
    live.waits_for_guide = True
    assert to_unknown_state(live, 1.5).waiting_reason == pb.WAITING_REASON_GUIDE
