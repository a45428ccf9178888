"""The end of a call is told once to whoever is on it, in the words of its cause."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from unit.router.scripted_call import ScriptedCall
from weir_chassis.errors import Draining, Internal, WeirError, WorkerLost
from weir_chassis.testing import settle
from weir_router.streams.worker_stream import WorkerStream


class Strings(WorkerStream[str, str]):
    kind = "toy"

    def __init__(self) -> None:
        super().__init__("t:1")
        self.came: list[str] = []
        self.told: list[WeirError] = []

    def _next_message(self) -> str | None:
        return None

    def _on_message(self, message: str) -> None:
        self.came.append(message)

    def _fail_all(self) -> None:
        assert not self.is_open, "nobody is to come on it any more"
        self.told.append(self._lost(self.cause))


@pytest.mark.parametrize(
    ("end", "kind"), [(Draining("it goes"), Draining), (Internal("a bug"), WorkerLost), (WorkerLost("cut"), WorkerLost)]
)
async def test_what_ends_a_call_is_raised_and_told(end: WeirError, kind: type[WeirError]) -> None:
    stream, call = Strings(), ScriptedCall()
    run = asyncio.create_task(stream.run(cast("Any", call)))
    call.answer("a message")
    await settle()
    assert stream.is_open
    call.fail_with(end)
    with pytest.raises(type(end)):
        await run
    assert stream.came == ["a message"]
    [told] = stream.told
    assert isinstance(told, kind)
    assert told.message == f"toy t:1 was lost: {end.message}"
    assert told.metadata == {"worker": "t:1"}


async def test_a_call_that_is_taken_down_from_outside_is_told_as_whoever_did_it_says() -> None:
    stream = Strings()
    run = asyncio.create_task(stream.run(cast("Any", ScriptedCall())))
    await settle()
    stream.cause = "it answers no probe"
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert [error.message for error in stream.told] == ["toy t:1 was lost: it answers no probe"]
