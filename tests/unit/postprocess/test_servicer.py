"""What a stream does besides its session: drains, times its writes, keeps the loop free, gives everything back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from contract.postprocess_contract import Caller, calling, connect, opened, row
from unit.postprocess.vocabularies import byte_level
from weir.inference.v1.output_pb2 import FinishReason, RowLogprobs, TokenBatch
from weir.postprocess.v1.postprocess_pb2 import Finish, Open, OpenedOutput, PostprocessRequest
from weir.postprocess.v1.postprocess_pb2_grpc import add_PostprocessServiceServicer_to_server
from weir_chassis.errors import reason_name
from weir_chassis.server import Chassis, Registration, new_chassis
from weir_chassis.status import from_rpc_error
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback, settle
from weir_postprocess.servicer import PostprocessServicer, StreamLimits
from weir_postprocess.session import Session

if TYPE_CHECKING:
    from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceAsyncStub as Stub

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}


@pytest.fixture
def chassis() -> Chassis:
    return new_chassis("postprocess")


def servicer(chassis: Chassis, slow_consumer_seconds: float = 10.0) -> PostprocessServicer:
    limits = StreamLimits(max_open_requests=4, slow_consumer_seconds=slow_consumer_seconds)
    return PostprocessServicer({"bytes": byte_level().vocabulary}, limits, chassis.leases, chassis.metrics)


@asynccontextmanager
async def stub_of(made: PostprocessServicer, place: str = "memory") -> AsyncIterator[Stub]:
    registration = Registration(
        add_PostprocessServiceServicer_to_server, made, "weir.postprocess.v1.PostprocessService"
    )
    async with PLACES[place](registration) as channel:
        yield connect(channel)


async def ends_with(caller: Caller) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.call.read()
    return reason_name(from_rpc_error(refused.value).reason)


def token(character: str) -> list[int]:
    return byte_level().ids(character)


@pytest.mark.parametrize("place", PLACES)
async def test_a_drain_ends_an_idle_stream(place: str, chassis: Chassis) -> None:
    made = servicer(chassis)
    async with stub_of(made, place) as stub, calling(stub) as caller:
        await caller.ask(opens=[opened(1)], tokens=row(1, token("a")))
        await caller.ask(finishes=[Finish(handle=1, finish_reason=FinishReason.FINISH_REASON_STOP)])
        await made.drain()
        assert await ends_with(caller) == "DRAINING"


@pytest.mark.parametrize("place", PLACES)
async def test_a_drain_lets_open_requests_finish(place: str, chassis: Chassis) -> None:
    made = servicer(chassis)
    async with stub_of(made, place) as stub, calling(stub) as caller:
        await caller.ask(opens=[opened(1)], tokens=row(1, token("a")))
        await made.drain()
        await caller.ask(opens=[opened(2)], tokens=row(1, token("b"), first=1))
        assert caller.failed == {2: "DRAINING"}
        await caller.ask(finishes=[Finish(handle=1, finish_reason=FinishReason.FINISH_REASON_LENGTH)])
        assert caller.text == {(1, 0): "ab"}
        assert len(caller.finished) == 1
        assert await ends_with(caller) == "DRAINING"


async def test_a_caller_that_does_not_read_is_a_slow_consumer(chassis: Chassis) -> None:
    async with stub_of(servicer(chassis, slow_consumer_seconds=0.05)) as stub, calling(stub) as caller:
        await caller.send(opens=[opened(1)])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            for i in range(1000):
                await caller.send(tokens=row(1, token("a"), first=i))
        assert reason_name(from_rpc_error(refused.value).reason) == "SLOW_CONSUMER"


async def test_a_request_is_a_lease_and_a_cancelled_call_gives_it_back(chassis: Chassis) -> None:
    async with stub_of(servicer(chassis)) as stub, calling(stub) as caller:
        await caller.ask(opens=[opened(1), opened(2)], tokens=row(1, token("a")))
        assert chassis.leases.counts() == {"postprocess_request": 2}
        await caller.send(closed_handles=[2])
        await caller.ask(tokens=row(1, token("a"), first=1))
        assert chassis.leases.counts() == {"postprocess_request": 1}
        caller.call.cancel()
        await settle()
        assert_no_leases(chassis.leases)


def likely(count: int) -> TokenBatch:
    return TokenBatch(logprobs=[RowLogprobs(top_token_ids=[1] * count)])


@pytest.mark.parametrize(
    ("sent", "on_loop"),
    [
        (PostprocessRequest(opens=[Open(resumed_outputs=[OpenedOutput(token_ids=[1] * 4096)])]), True),
        (PostprocessRequest(opens=[Open(resumed_outputs=[OpenedOutput(token_ids=[1] * 4097)])]), False),
        (PostprocessRequest(opens=[Open(stop=["x" * 1000] * 4)]), True),
        (PostprocessRequest(opens=[Open(stop=["x" * 1000] * 5)]), False),
        (PostprocessRequest(tokens=TokenBatch(token_ids=[1] * 4096)), True),
        (PostprocessRequest(tokens=TokenBatch(token_ids=[1] * 4097)), False),
        (PostprocessRequest(tokens=likely(4096)), True),
        (PostprocessRequest(tokens=likely(4097)), False),
    ],
)
async def test_much_work_leaves_the_loop(
    sent: PostprocessRequest, on_loop: bool, chassis: Chassis, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(Session, "apply", lambda *_: threads.append(threading.current_thread()))
    async with stub_of(servicer(chassis)) as stub, calling(stub) as caller:
        await caller.call.write(sent)
        await caller.end()
    assert [thread is threading.main_thread() for thread in threads] == [on_loop]


async def test_what_is_counted(chassis: Chassis) -> None:
    async with stub_of(servicer(chassis)) as stub, calling(stub) as caller:
        await caller.ask(opens=[opened(1, stop=["b"]), opened(1)], tokens=row(1, token("a") + token("b")))
    sample = chassis.metrics.registry.get_sample_value
    assert sample("weir_postprocess_tokens_total") == 2
    assert sample("weir_postprocess_stops_total") == 1
    assert sample("weir_postprocess_failed_requests_total") == 1


async def test_a_bug_is_internal_and_gives_everything_back(chassis: Chassis, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_of(servicer(chassis)) as stub, calling(stub) as caller:
        await caller.ask(opens=[opened(1)], tokens=row(1, token("a")))

        def break_down(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(Session, "apply", break_down)
        await caller.send(tokens=row(1, token("a"), first=1))
        assert await ends_with(caller) == "INTERNAL"
        await asyncio.sleep(0)
    assert_no_leases(chassis.leases)
