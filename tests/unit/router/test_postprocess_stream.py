"""What comes in one turn goes out as one message; what comes back goes to its request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import pytest

from unit.router.scripted_call import ScriptedCall
from unit.router.test_executor_stream import tokens
from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.stream_pb2 import Delta
from weir.postprocess.v1.postprocess_pb2 import (
    Finish,
    Open,
    PostprocessOutputFinished,
    PostprocessRequest,
    PostprocessResponse,
    RequestFailed,
)
from weir_chassis.errors import Internal, WeirError, WorkerLost
from weir_chassis.status import to_failure
from weir_chassis.testing import VirtualClock, settle
from weir_router.streams.postprocess_stream import PostprocessStream

STOP, LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH


@dataclass(eq=False)
class Sink:
    heard: list[Any] = field(default_factory=list)

    def on_delta(self, delta: Delta, now: float) -> None:
        self.heard.append(delta.text)

    def on_text_finished(self, row: PostprocessOutputFinished) -> None:
        self.heard.append(("finished", row.output_index))

    def on_text_failed(self, error: WeirError) -> None:
        self.heard.append(error)


@dataclass
class Wire:
    stream: PostprocessStream
    call: ScriptedCall
    clock: VirtualClock
    run: asyncio.Task[None]

    def open(self, handle: int) -> Sink:
        sink = Sink()
        self.stream.open(Open(handle=handle, n=1), sink)
        return sink

    async def respond(self, **fields: Any) -> None:
        self.call.answer(PostprocessResponse(**fields))
        await settle()


@asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    clock = VirtualClock()
    stream, call = PostprocessStream("p:1", clock), ScriptedCall()
    run = asyncio.create_task(stream.run(cast("Any", call)))
    await settle()
    yield Wire(stream, call, clock, run)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    assert stream.num_live == 0


async def test_one_turn_is_one_message_in_the_order_of_the_contract() -> None:
    async with wire() as on:
        on.open(1)
        on.stream.add_tokens(tokens(1))
        on.open(2)
        on.stream.add_tokens(tokens(2))
        on.stream.finish(1, 0, STOP, ends_with_stop_token=True)
        on.stream.finish(2, 0, LENGTH, ends_with_stop_token=False)
        on.stream.close(2)
        await settle()
        (message,) = on.call.written
        assert message == PostprocessRequest(
            opens=[Open(handle=1, n=1), Open(handle=2, n=1)],
            tokens=tokens(1, 2),
            finishes=[
                Finish(handle=1, output_index=0, finish_reason=STOP, ends_with_stop_token=True),
                Finish(handle=2, output_index=0, finish_reason=LENGTH),
            ],
            closed_handles=[2],
        )


async def test_what_comes_while_a_write_is_under_way_is_joined() -> None:
    async with wire() as on:
        on.call.writable.clear()
        on.open(1)
        await settle()
        for _ in range(3):
            on.stream.add_tokens(tokens(1))
            await settle()
        assert len(on.call.written) == 1
        on.call.writable.set()
        await settle()
        assert [list(message.tokens.handles) for message in on.call.written] == [[], [1, 1, 1]]
        assert [entry.row for entry in on.call.written[1].tokens.logprobs] == [0, 1, 2]


async def test_each_row_goes_to_its_own_request() -> None:
    async with wire() as on:
        first, second = on.open(1), on.open(2)
        await on.respond(
            handles=[2, 1, 9],
            deltas=[Delta(text="b"), Delta(text="a"), Delta(text="nobody's")],
            finished=[PostprocessOutputFinished(handle=2)],
        )
        assert (first.heard, second.heard) == (["a"], ["b", ("finished", 0)])


async def test_a_request_that_was_closed_hears_nothing_more() -> None:
    async with wire() as on:
        sink = on.open(1)
        on.stream.close(1)
        on.stream.close(1)
        on.stream.finish(1, 0, STOP, ends_with_stop_token=True)
        await on.respond(handles=[1], deltas=[Delta(text="late")])
        assert sink.heard == []
        assert [list(message.closed_handles) for message in on.call.written] == [[1]]
        assert not on.call.written[0].finishes


async def test_a_request_fails_by_itself() -> None:
    async with wire() as on:
        failing, other = on.open(1), on.open(2)
        await on.respond(failed=[RequestFailed(handle=1, failure=to_failure(Internal("broken")))])
        assert isinstance(failing.heard[0], Internal)
        assert other.heard == []


async def test_the_end_of_the_stream_is_the_end_of_all_its_requests() -> None:
    async with wire() as on:
        sink = on.open(1)
        on.call.fail(grpc.StatusCode.UNAVAILABLE, "gone")
        with pytest.raises(WorkerLost):
            await on.run
        (error,) = sink.heard
        assert isinstance(error, WorkerLost)
        assert error.metadata == {"worker": "p:1"}
        on.stream.add_tokens(tokens(1))
        with pytest.raises(WorkerLost):
            on.open(2)


async def test_silence_is_counted_from_the_oldest_finish_that_is_owed_an_answer() -> None:
    async with wire() as on:
        on.open(1)
        on.open(2)
        await on.clock.advance(100.0)
        assert on.stream.silent_seconds(on.clock.monotonic()) == 0.0, "tokens may be held back for ever"
        on.stream.finish(1, 0, STOP, ends_with_stop_token=True)
        await on.clock.advance(5.0)
        on.stream.finish(2, 0, STOP, ends_with_stop_token=True)
        await on.clock.advance(5.0)
        assert on.stream.silent_seconds(on.clock.monotonic()) == 10.0
        await on.respond(finished=[PostprocessOutputFinished(handle=1)])
        assert on.stream.silent_seconds(on.clock.monotonic()) == 5.0
        on.stream.close(2)
        assert on.stream.silent_seconds(on.clock.monotonic()) == 0.0


async def test_a_replica_that_stops_reading_loses_its_stream_before_memory_does() -> None:
    async with wire() as on:
        on.call.writable.clear()
        sink = on.open(1)
        await settle()
        many = tokens(*[1] * 1000)
        for _ in range(66):
            on.stream.add_tokens(many)
        with pytest.raises(WeirError):
            await on.run
        assert isinstance(sink.heard[0], WorkerLost)
