"""When a stream speaks. What it says, and how it ends, is the servicer's tests'."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from weir.executor.v1 import executor_pb2 as pb
from weir_executor.admission import Admission
from weir_executor.caller_stream import CallerStream
from weir_executor.handoff.table import HandoffTable
from weir_executor.live_requests import LiveRequest
from weir_executor.step_output import FinishReason, TokenOutput
from weir_executor.stream_pace import LONGEST_SECONDS, StreamPace


class _Takes:
    """An admission that takes everything."""

    def submit(self, submit: pb.Submit, listener: CallerStream) -> LiveRequest:
        return cast("LiveRequest", _Live(submit.handle))


class _Live:
    """As much of a live request as a stream looks at."""

    def __init__(self, handle: int) -> None:
        self.handle, self.accepted, self.told = handle, False, False
        self.stop_token_ids: frozenset[int] = frozenset()


def _stream(requests: int, deltas_per_second: float) -> tuple[CallerStream, list[LiveRequest]]:
    nothing_left = cast("HandoffTable", None)
    stream = CallerStream(cast("Admission", _Takes()), nothing_left, 10_000, StreamPace(deltas_per_second))
    for handle in range(requests):
        stream.command(pb.GenerateRequest(submit=pb.Submit(handle=handle)))
    return stream, list(stream._by_handle.values())


def _step(stream: CallerStream, live: list[LiveRequest], index: int, finish: FinishReason | None = None) -> None:
    for request in live:
        stream.hear_tokens(request, TokenOutput(request.handle, 0, index, [7], finish_reason=finish))
    stream.flush()


async def _tokens_now(stream: CallerStream) -> int:
    """Of the message that the stream has at this very moment."""
    waiting = asyncio.ensure_future(stream.next_message())
    await asyncio.sleep(0)
    assert waiting.done(), "the stream keeps to itself what it has to say"
    message = waiting.result()
    assert message is not None
    return len(message.tokens.token_ids)


async def test_steps_of_many_requests_come_together_and_none_waits_for_long() -> None:
    stream, live = _stream(requests=8, deltas_per_second=1e-3)
    _step(stream, live, 0)
    assert await _tokens_now(stream) == 8
    _step(stream, live, 1)
    waiting = asyncio.ensure_future(stream.next_message())
    await asyncio.sleep(LONGEST_SECONDS / 4)
    assert not waiting.done()
    _step(stream, live, 2)
    message = await asyncio.wait_for(waiting, 20 * LONGEST_SECONDS)
    assert message is not None
    assert list(message.tokens.token_counts) == [2] * 8


@pytest.mark.parametrize("deltas_per_second", [1e-3, 1e9])
async def test_a_first_token_and_an_end_leave_at_once(deltas_per_second: float) -> None:
    stream, live = _stream(requests=8, deltas_per_second=deltas_per_second)
    _step(stream, live[:1], 0)
    assert await _tokens_now(stream) == 1
    _step(stream, live[1:2], 0)
    assert await _tokens_now(stream) == 1
    _step(stream, live[:1], 1, FinishReason.LENGTH)
    assert await _tokens_now(stream) == 1


async def test_below_the_rate_every_step_leaves_at_once() -> None:
    stream, live = _stream(requests=8, deltas_per_second=1e9)
    for index in range(5):
        _step(stream, live, index)
        assert await _tokens_now(stream) == 8


async def test_a_stream_that_has_failed_says_what_waits_and_then_why() -> None:
    stream, live = _stream(requests=0, deltas_per_second=1e-3)
    live = [cast("LiveRequest", _Live(handle)) for handle in range(8)]
    _step(stream, live, 0)
    await stream.next_message()
    _step(stream, live, 1)
    stream.fail(RuntimeError("the engine has stopped"))
    assert await _tokens_now(stream) == 8
    with pytest.raises(RuntimeError, match="the engine has stopped"):
        await stream.next_message()
