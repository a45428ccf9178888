"""The writer and the reader of one call live and die together, whoever goes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import pytest

from unit.router.scripted_call import ScriptedCall
from weir_chassis.errors import Internal, WorkerLost
from weir_chassis.testing import settle
from weir_router.streams.duplex import Duplex


class Ends:
    """Sends the strings that are put in, keeps those that come."""

    def __init__(self, pause: Callable[[], Awaitable[Any] | None] | None = None) -> None:
        self.outgoing: list[str] = []
        self.came: list[str] = []
        self.duplex: Duplex[str, str] = Duplex(self._next, self.came.append, pause)
        self.call = ScriptedCall()

    def send(self, message: str) -> None:
        self.outgoing.append(message)
        self.duplex.wake()

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.duplex.run(cast("Any", self.call)))

    def _next(self) -> str | None:
        message = self.outgoing.pop(0) if self.outgoing else None
        if message == "a bug":
            raise RuntimeError("a bug of ours")
        return message


async def test_messages_go_both_ways() -> None:
    ends = Ends()
    ends.send("before it runs")
    run = ends.start()
    await settle()
    ends.send("later")
    ends.call.answer("an answer")
    await settle()
    assert ends.call.written == ["before it runs", "later"]
    assert ends.came == ["an answer"]
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert ends.call.cancelled


async def test_what_is_to_be_sent_waits_for_more_as_it_is_told() -> None:
    gates = [None, asyncio.Event(), None]
    ends = Ends(lambda: gate.wait() if gates and (gate := gates.pop(0)) is not None else None)
    run, (_, gate, _) = ends.start(), gates
    ends.send("at once")
    await settle()
    assert ends.call.written == ["at once"]
    ends.send("later")
    await settle()
    assert ends.call.written == ["at once"]
    assert gate is not None
    gate.set()
    await settle()
    assert ends.call.written == ["at once", "later"]
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


async def test_a_call_that_is_cancelled_here_is_a_lost_worker_and_not_a_cancelled_task() -> None:
    ends = Ends()
    run = ends.start()
    await settle()
    ends.call.cancel()
    with pytest.raises(WorkerLost):
        await run


async def test_a_failed_call_ends_the_writer() -> None:
    ends = Ends()
    run = ends.start()
    await settle()
    ends.call.fail(grpc.StatusCode.UNAVAILABLE, "gone")
    with pytest.raises(WorkerLost, match="gone"):
        await run
    ends.send("nobody writes this")
    await settle()
    assert ends.call.written == []


async def test_a_bug_in_the_writer_is_not_mistaken_for_a_lost_worker() -> None:
    ends = Ends()
    run = ends.start()
    ends.send("a bug")
    with pytest.raises(RuntimeError, match="a bug of ours"):
        await run


async def test_what_grpc_itself_calls_internal_is_a_lost_worker_and_what_the_worker_does_is_not() -> None:
    ends = Ends()
    run = ends.start()
    await settle()
    ends.call.fail(grpc.StatusCode.INTERNAL, "Received RST_STREAM with code 2")
    with pytest.raises(WorkerLost, match="RST_STREAM"):
        await run
    ends = Ends()
    run = ends.start()
    await settle()
    ends.call.fail_with(Internal("the engine stopped"))
    with pytest.raises(Internal, match="the engine stopped"):
        await run
