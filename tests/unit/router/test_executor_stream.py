"""One stream, many requests: each is told what is its own, and all are told of the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import pytest

from unit.router.scripted_call import ScriptedCall
from weir.executor.v1.executor_pb2 import ExecutorOutputFinished, GenerateResponse, RequestEnd, RequestFailed, Submit
from weir.inference.v1.output_pb2 import RowLogprobs, TokenBatch
from weir_chassis.errors import Draining, Internal, InvalidArgument, WeirError, WorkerLost
from weir_chassis.status import to_failure
from weir_chassis.testing import VirtualClock, settle
from weir_router.streams.executor_stream import ExecutorStream


@dataclass(eq=False)
class Lane:
    batches: list[TokenBatch] = field(default_factory=list)

    def add_tokens(self, batch: TokenBatch) -> None:
        self.batches.append(batch)

    @property
    def rows(self) -> list[tuple[int, list[int]]]:
        """(handle, token ids) for batches of one token per row."""
        return [(h, [t]) for batch in self.batches for h, t in zip(batch.handles, batch.token_ids, strict=True)]


@dataclass(eq=False)
class Sink:
    lane: Lane
    heard: list[Any] = field(default_factory=list)

    def on_accepted(self) -> None:
        self.heard.append("accepted")

    def on_tokens(self, output_index: int, token_ids: Sequence[int]) -> None:
        self.heard.append((output_index, list(token_ids)))

    def on_logprobs(self, output_index: int, row: RowLogprobs) -> None:
        self.heard.append((output_index, list(row.logprobs)))

    def on_finished(self, row: ExecutorOutputFinished) -> None:
        self.heard.append(("finished", row.output_index))

    def on_ended(self, end: RequestEnd) -> None:
        self.heard.append("ended")

    def on_failed(self, error: WeirError) -> None:
        self.heard.append(error)

    def on_stalled(self) -> None:
        self.heard.append("stalled")


@dataclass
class Wire:
    stream: ExecutorStream
    call: ScriptedCall
    run: asyncio.Task[None]

    def submit(self, handle: int, lane: Lane, token_ids: Sequence[int] = ()) -> Sink:
        sink = Sink(lane)
        self.stream.submit(Submit(handle=handle, token_ids=token_ids), sink)
        return sink

    async def step(self, **fields: Any) -> None:
        self.call.answer(GenerateResponse(**fields))
        await settle()

    @property
    def sent(self) -> list[str]:
        return [command for message in self.messages for command in message]

    @property
    def messages(self) -> list[list[str]]:
        return [[each.WhichOneof("command") for each in (message, *message.more)] for message in self.call.written]


@asynccontextmanager
async def wire(*, takes_more: bool = False) -> AsyncIterator[Wire]:
    stream, call = ExecutorStream("e:1", VirtualClock(), takes_more=takes_more), ScriptedCall()
    run = asyncio.create_task(stream.run(cast("Any", call)))
    yield Wire(stream, call, run)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    assert call.cancelled, "a stream that is over is cancelled"
    assert stream.num_live == 0


def tokens(*handles: int) -> TokenBatch:
    count = len(handles)
    return TokenBatch(
        handles=handles,
        output_indexes=[0] * count,
        first_token_indexes=[0] * count,
        token_counts=[1] * count,
        token_ids=[100 + handle for handle in handles],
        logprobs=[RowLogprobs(row=row, logprobs=[-1.0]) for row in range(count)],
    )


async def test_a_step_goes_on_whole_when_all_of_it_goes_one_way() -> None:
    lane = Lane()
    async with wire() as on:
        sinks = [on.submit(1, lane), on.submit(2, lane)]
        await on.step(accepted_handles=[1, 2], tokens=tokens(1, 2))
        assert lane.batches == [tokens(1, 2)]
        assert [sink.heard for sink in sinks] == [
            ["accepted", (0, [101]), (0, [-1.0])],
            ["accepted", (0, [102]), (0, [-1.0])],
        ]
        assert on.sent == ["submit", "submit"]


async def test_commands_that_are_there_together_are_one_message_in_their_order() -> None:
    async with wire(takes_more=True) as on:
        on.submit(1, Lane())
        on.submit(2, Lane())
        on.stream.withdraw(1)
        await settle()
        assert on.messages == [["submit", "submit", "abort"]]
        assert [each.submit.handle for each in on.call.written[0].more] == [2, 0]


async def test_an_executor_that_does_not_say_that_it_takes_them_is_sent_one_at_a_time() -> None:
    async with wire() as on:
        on.submit(1, Lane())
        on.submit(2, Lane())
        await settle()
        assert on.messages == [["submit"], ["submit"]]


async def test_what_an_executor_takes_in_one_message_is_all_that_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weir_router.streams.executor_stream.MAX_JOINED", 3)
    async with wire(takes_more=True) as on:
        on.submit(1, Lane())
        for output_index in range(8):
            on.stream.abort_output(1, output_index)
        await settle()
        assert [len(message) for message in on.messages] == [4, 4, 1]


async def test_long_prompts_are_not_joined_without_end() -> None:
    async with wire(takes_more=True) as on:
        for handle in (1, 2, 3):
            on.submit(handle, Lane(), token_ids=[200_000] * 40_000)  # three bytes each
        await settle()
        assert on.messages == [["submit", "submit"], ["submit"]]


async def test_a_step_is_split_between_the_lanes_of_its_requests() -> None:
    lanes = [Lane(), Lane()]
    async with wire() as on:
        for handle in (1, 2, 3):
            on.submit(handle, lanes[handle % 2])
        await on.step(tokens=tokens(1, 2, 3))
        assert lanes[1].rows == [(1, [101]), (3, [103])]
        assert lanes[0].rows == [(2, [102])]
        assert [entry.row for entry in lanes[1].batches[0].logprobs] == [0, 1]


async def test_tokens_of_a_request_that_has_gone_go_nowhere() -> None:
    lane = Lane()
    async with wire() as on:
        gone, here = on.submit(1, lane), on.submit(2, lane)
        on.stream.withdraw(1)
        await on.step(accepted_handles=[1], tokens=tokens(1, 2), ended=[RequestEnd(handle=1)])
        assert lane.rows == [(2, [102])]
        assert (gone.heard, here.heard) == ([], [(0, [102]), (0, [-1.0])])
        assert on.sent == ["submit", "submit", "abort"]
        on.stream.withdraw(1)
        await settle()
        assert on.sent == ["submit", "submit", "abort"], "an abort is sent once"


async def test_the_last_word_comes_last_and_once() -> None:
    async with wire() as on:
        sink = on.submit(1, Lane())
        finished = [ExecutorOutputFinished(handle=1)]
        await on.step(tokens=tokens(1), finished=finished, ended=[RequestEnd(handle=1)])
        await on.step(tokens=tokens(1), ended=[RequestEnd(handle=1)])
        assert sink.heard == [(0, [101]), (0, [-1.0]), ("finished", 0), "ended"]
        on.stream.abort_output(1, 0)
        await settle()
        assert on.sent == ["submit"], "what has ended is not aborted"


async def test_a_request_fails_by_itself() -> None:
    async with wire() as on:
        failing, other = on.submit(1, Lane()), on.submit(2, Lane())
        failure = to_failure(InvalidArgument("token_ids", "must not be empty"))
        await on.step(failed=[RequestFailed(handle=1, failure=failure)])
        (error,) = failing.heard
        assert isinstance(error, InvalidArgument)
        assert other.heard == []


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_the_end_of_the_stream_is_the_end_of_all_its_requests(code: grpc.StatusCode) -> None:
    async with wire() as on:
        sinks = [on.submit(1, Lane()), on.submit(2, Lane())]
        on.call.fail(code, "the engine stopped")
        with pytest.raises(WeirError):
            await on.run
        for sink in sinks:
            (error,) = sink.heard
            assert isinstance(error, WorkerLost)
            assert error.metadata == {"worker": "e:1"}
            assert "the engine stopped" in error.message
        with pytest.raises(WorkerLost):
            on.submit(3, Lane())


async def test_a_stream_that_ends_without_a_word_is_lost_too() -> None:
    async with wire() as on:
        sink = on.submit(1, Lane())
        on.call.end()
        with pytest.raises(WorkerLost):
            await on.run
        assert isinstance(sink.heard[0], WorkerLost)


async def test_letting_go_of_the_stream_tells_its_requests() -> None:
    async with wire() as on:
        sink = on.submit(1, Lane())
        await settle()
        on.run.cancel()
        await settle()
        assert isinstance(sink.heard[0], WorkerLost)


async def test_columns_that_disagree_end_the_stream() -> None:
    async with wire() as on:
        on.submit(1, Lane())
        on.call.answer(GenerateResponse(tokens=TokenBatch(handles=[1])))
        with pytest.raises(Internal, match="columns"):
            await on.run


async def test_silence_is_counted_from_the_first_request_on() -> None:
    clock = VirtualClock()
    stream = ExecutorStream("e:1", clock)
    await clock.advance(100.0)
    assert stream.silent_seconds(clock.monotonic()) == 0.0, "it owes nothing"
    stream.submit(Submit(handle=1), Sink(Lane()))
    await clock.advance(5.0)
    stream.submit(Submit(handle=2), Sink(Lane()))
    assert stream.silent_seconds(clock.monotonic()) == 5.0, "a second request does not excuse the silence for the first"
    stream.note_progress()
    assert stream.silent_seconds(clock.monotonic()) == 0.0


async def test_giving_up_on_a_silent_executor_does_not_excuse_its_silence() -> None:
    clock = VirtualClock()
    stream = ExecutorStream("e:1", clock)
    for handle in range(3):
        stream.submit(Submit(handle=handle), Sink(Lane()))
        await clock.advance(30.0)
        stream.withdraw(handle)
    assert stream.silent_seconds(clock.monotonic()) == 90.0
    stream.note_progress()
    await clock.advance(30.0)
    assert stream.silent_seconds(clock.monotonic()) == 0.0, "it has answered, and nobody waits for it"


async def test_a_stream_that_a_drain_cut_says_so() -> None:
    async with wire() as on:
        sink = on.submit(1, Lane())
        on.call.fail_with(Draining("the service shut down before this call was done"))
        with pytest.raises(Draining):
            await on.run
        (error,) = sink.heard
        assert isinstance(error, Draining)
        assert error.metadata == {"worker": "e:1"}


async def test_all_are_told_of_a_stall_and_live_on() -> None:
    async with wire() as on:
        begun, waiting = on.submit(1, Lane()), on.submit(2, Lane())
        await on.step(accepted_handles=[1])
        on.stream.tell_stalled()
        on.stream.tell_stalled()
        assert (begun.heard, waiting.heard) == (["accepted", "stalled", "stalled"], ["stalled"] * 2)
        await on.step(ended=[RequestEnd(handle=2)])
        assert waiting.heard[-1] == "ended"


async def test_a_request_that_is_given_nothing_for_long_fails_alone() -> None:
    clock = VirtualClock()
    stream, call = ExecutorStream("e:1", clock), ScriptedCall()
    run = asyncio.create_task(stream.run(cast("Any", call)))
    on = Wire(stream, call, run)
    stalled, steady, queued = (on.submit(handle, Lane()) for handle in (1, 2, 3))
    await on.step(accepted_handles=[1, 2])
    await clock.advance(6.0)
    await on.step(tokens=tokens(2))
    await clock.advance(5.0)
    stream.fail_stalled(10.0)
    error = stalled.heard[-1]
    assert isinstance(error, WorkerLost)
    assert "for 10 s" in error.message
    assert steady.heard == ["accepted", (0, [102]), (0, [-1.0])]
    assert queued.heard == [], "it waits, and nobody has said that it has begun"
    await settle()
    assert on.sent == ["submit"] * 3 + ["abort"]
    await on.step(tokens=tokens(1))
    assert stalled.heard[-1] is error, "what comes too late is nobody's"
    stream.fail_stalled(10.0)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
