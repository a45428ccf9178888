"""A client whose connection breaks, at any event, goes on at the same router or at another one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.inference.v1.output_pb2 import FINISH_REASON_STOP, Usage
from weir.inference.v1.stream_pb2 import Accepted, Continued, Delta, OutputFinished, Receipt, ToolCallDelta
from weir.router.v1.router_pb2 import ChatResponse, NextToken
from weir_chassis.errors import Cancelled, DeadlineExceeded, Draining, NotFound, Overloaded, WeirError, WorkerLost
from weir_chassis.status import from_status, to_status
from weir_client import resuming
from weir_client.resuming import Had, going_on

EVENTS = [
    ChatResponse(accepted=Accepted(request_id="r", attempt=1)),
    ChatResponse(delta=Delta(token_ids=[1, 2], text="wé")),
    ChatResponse(delta=Delta(output_index=1, token_ids=[5], text="x")),
    ChatResponse(continued=Continued(attempt=2, reason="WORKER_LOST", exact=True)),
    ChatResponse(delta=Delta(first_token_index=2, token_ids=[3], text="ir")),
    ChatResponse(delta=Delta(first_token_index=3, tool_calls=[ToolCallDelta(arguments_json="{}")])),
    ChatResponse(finished=OutputFinished(output_index=1, finish_reason=FINISH_REASON_STOP)),
    ChatResponse(finished=OutputFinished(output_index=0, finish_reason=FINISH_REASON_STOP)),
    ChatResponse(usage=Usage(completion_tokens=4)),
    ChatResponse(receipt=Receipt(request_id="r")),
]


def remote(error: WeirError) -> WeirError:
    """As a router says it."""
    return from_status(to_status(error))


class Router:
    """Breaks each call after so many events; what a client has of deltas it does not say again."""

    def __init__(self, breaks: Sequence[tuple[int, WeirError]]) -> None:
        self.breaks = list(breaks)
        self.moves = 0

    async def open(self, had: Had) -> AsyncIterator[ChatResponse]:
        count, error = self.breaks.pop(0) if self.breaks else (len(EVENTS), None)
        for event in self._rest(had)[:count]:
            yield event
        if error is not None:
            raise error

    def _rest(self, had: Had) -> list[ChatResponse]:
        seen = {each.output_index: each for each in had.next()}
        return [event for event in EVENTS if not (event.HasField("delta") and self._has(seen, event.delta))]

    def _has(self, seen: dict[int, NextToken], delta: Delta) -> bool:
        place = seen.get(delta.output_index)
        if place is None:
            return False
        if delta.tool_calls:
            return bool(place.tool_call_bytes)
        return delta.first_token_index < place.first_token_index

    def move(self) -> None:
        self.moves += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "_MIN_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(resuming, "_MAX_PAUSE_SECONDS", 0.0)


async def read(router: Router, routers: int = 2, retain_seconds: float = 60.0) -> list[ChatResponse]:
    events = going_on(router.open, router.move, routers=routers, retain_seconds=retain_seconds)
    return [event async for event in events]


LOST = [WorkerLost("the connection broke"), Cancelled("reset"), remote(Draining("shutting down"))]


@given(st.lists(st.tuples(st.integers(0, len(EVENTS)), st.sampled_from(LOST)), max_size=6))
async def test_wherever_it_breaks_each_event_comes_once(breaks: list[tuple[int, WeirError]]) -> None:
    resuming._MIN_PAUSE_SECONDS = resuming._MAX_PAUSE_SECONDS = 0.0  # type: ignore[misc]
    router = Router(breaks)
    assert await read(router) == EVENTS
    assert router.moves == len(breaks)


def test_what_is_wanted_next_counts_tokens_text_and_tool_calls() -> None:
    had = Had()
    assert [had.take(event) for event in EVENTS] == [True] * len(EVENTS)
    assert [(e.output_index, e.first_token_index, e.text_bytes, e.tool_call_bytes) for e in had.next()] == [
        (0, 3, 5, 2),
        (1, 1, 1, 0),
    ]
    again = [event for event in EVENTS if not event.HasField("delta")]
    assert [had.take(event) for event in again] == [False] * 6


@pytest.mark.parametrize(
    "end", [remote(WorkerLost("the executor died")), remote(Cancelled("by CancelRequest")), DeadlineExceeded("time")]
)
async def test_the_streams_own_end_is_no_lost_connection(end: WeirError) -> None:
    router = Router([(3, end)])
    with pytest.raises(type(end)):
        await read(router)
    assert router.moves == 0


async def test_a_router_that_does_not_know_it_is_not_the_last_word_of_the_others() -> None:
    lost, unknown = (2, LOST[0]), (0, remote(NotFound("r")))
    assert await read(Router([lost, unknown])) == EVENTS
    with pytest.raises(NotFound):
        await read(Router([lost, unknown, unknown]))


async def test_a_refusal_to_resume_that_may_pass_is_waited_out_but_not_for_ever() -> None:
    away = remote(WorkerLost("the store does not answer"))
    assert await read(Router([(2, LOST[0]), *[(0, away)] * 5])) == EVENTS
    with pytest.raises(WorkerLost):
        await read(Router([(2, LOST[0]), *[(0, away)] * 5]), retain_seconds=0.0)


async def test_a_first_call_that_is_refused_as_full_may_be_asked_again_while_it_would_be_kept() -> None:
    assert await read(Router([(0, remote(Overloaded("full")))])) == EVENTS


def test_a_lost_delta_is_noticed() -> None:
    had = Had()
    with pytest.raises(AssertionError, match="lost or repeated"):
        had.take(EVENTS[4])
