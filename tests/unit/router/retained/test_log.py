"""A log says what was said, exactly, or that it has been dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.router.retained.streams import delta, place, said, streams
from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished
from weir.router.v1.retained_pb2 import RetainedEntry
from weir_chassis.errors import Internal, NotFound, WorkerLost
from weir_router.delivery import Event
from weir_router.retained.entry import event_of
from weir_router.retained.log import RetainedLog

PLENTY = 1 << 20


def events_in(log: RetainedLog) -> list[Event]:
    entries = [RetainedEntry.FromString(data) for data in log.read(0, len(log)) if data is not None]
    return [event for event in map(event_of, entries) if event is not None]


@given(streams())
def test_a_log_that_is_read_back_elsewhere_is_the_same(stream: tuple[dict[int, list[int]], list[Event]]) -> None:
    outputs, events = stream
    log, copy = RetainedLog(PLENTY), RetainedLog(PLENTY)
    for event in events:
        log.add(event)
    log.end(WorkerLost("gone", metadata={"worker": "w"}))
    for data in log.read(0, len(log)):
        assert data is not None
        copy.load(data)
    assert events_in(log) == events_in(copy) == events
    assert copy.ends() == log.ends() == {index: place(ids) for index, ids in outputs.items() if ids}
    assert isinstance(copy.error, WorkerLost)
    assert (copy.ended, copy.accepted, copy.bytes) == (True, True, log.bytes)
    assert copy.error.metadata == {"worker": "w"}


@given(streams(max_outputs=2, max_tokens=40), st.integers(0, 3000))
def test_a_log_that_is_too_large_loses_its_beginning_and_says_so(
    stream: tuple[dict[int, list[int]], list[Event]], max_bytes: int
) -> None:
    outputs, events = stream
    log = RetainedLog(max_bytes)
    for event in events:
        log.add(event)
    assert log.bytes <= max_bytes or all(d is None for d in log.read(1, len(log) - 2))
    kept = {index: min(d.first_token_index for d in deltas) for index, deltas in _by_output(events_in(log)).items()}
    for index, ids in outputs.items():
        first = kept.get(index, len(ids))
        others = {other: place(tokens) for other, tokens in outputs.items() if other != index}
        log.cut(others | {index: place(ids[:first])})
        if first:
            with pytest.raises(NotFound, match=f"'{index}': '{first}'"):
                log.cut(others | {index: place(ids[: first - 1])})


def _by_output(events: list[Event]) -> dict[int, list[Delta]]:
    deltas = [event for event in events if isinstance(event, Delta)]
    return {index: [d for d in deltas if d.output_index == index] for index in {d.output_index for d in deltas}}


def test_what_is_no_delta_is_never_dropped() -> None:
    log = RetainedLog(0)
    others: list[Event] = [Accepted(request_id="r"), OutputFinished(output_index=1), Usage(prompt_tokens=3)]
    for first, event in enumerate(others):
        log.add(event)
        log.add(delta(0, first, [1]))
    log.end(None)
    assert events_in(log) == others
    assert not log.whole


def test_it_shrinks_by_as_much_as_is_asked_and_stays_so() -> None:
    log = RetainedLog(PLENTY)
    for first in range(20):
        log.add(delta(0, first, [1]))
    before = log.bytes
    log.shrink(before // 2)
    assert log.bytes <= before - before // 2
    log.add(delta(0, 20, [1]))
    assert log.bytes <= before - before // 2
    assert said([event for event in events_in(log) if event], {0: [1] * _first(log)}) == {0: ([1] * 21, "wéir" * 21)}


def _first(log: RetainedLog) -> int:
    return min(each.first_token_index for each in events_in(log) if isinstance(each, Delta))


def test_a_delta_that_does_not_follow_is_a_mistake_of_ours() -> None:
    log = RetainedLog(PLENTY)
    log.add(delta(0, 0, [1, 2]))
    for wrong in (delta(0, 1, [2]), delta(0, 3, [4]), delta(1, 1, [4])):
        with pytest.raises(Internal, match="lost or repeated"):
            log.add(wrong)


def test_a_client_is_told_once_that_it_is_accepted_and_a_stream_ends_once() -> None:
    log = RetainedLog(PLENTY)
    log.add(Accepted(request_id="r", attempt=1))
    log.add(Accepted(request_id="r", attempt=2))
    assert len(log) == 1
    log.end(None)
    log.end(WorkerLost("later"))
    assert (log.ended, log.error, len(log)) == (True, None, 2)
