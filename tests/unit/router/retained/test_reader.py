"""Readers of one log: each exact, whatever the order of appends, reads, takeovers and ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.router.retained.streams import delta, place, said, streams
from weir.inference.v1.stream_pb2 import Accepted, Continued, Delta
from weir_chassis.errors import Cancelled, SlowConsumer, WorkerLost
from weir_router.delivery import Event
from weir_router.retained.log import RetainedLog
from weir_router.retained.reader import Reader

PLENTY = 1 << 20


async def rest(reader: Reader) -> list[Event]:
    events: list[Event] = []
    while more := await reader.take():
        events += more
    return events


@given(streams(), st.data())
async def test_any_interleaving_of_appends_and_resuming_readers_is_exact(
    stream: tuple[dict[int, list[int]], list[Event]], data: st.DataObject
) -> None:
    """A client reads some, loses its connection after some of that, resumes: again and again, while the log grows."""
    outputs, events = stream
    log, had = RetainedLog(PLENTY), {index: list[int]() for index in outputs}
    reader = Reader(log, {})
    for event in [*events, None]:
        if event is None:
            log.end(None)
        else:
            log.add(event)
        reader.wake()
        if data.draw(st.booleans()):
            arrived = await _some(reader, log)
            lost = data.draw(st.integers(0, len(arrived)))
            for each in arrived[: len(arrived) - lost]:
                if isinstance(each, Delta):
                    assert each.first_token_index == len(had[each.output_index])
                    had[each.output_index] += each.token_ids
            if lost:
                reader = Reader(log, {index: place(ids) for index, ids in had.items()})
    assert said(await rest(reader), had) == said(events)


async def _some(reader: Reader, log: RetainedLog) -> list[Event]:
    """What is there now."""
    if log.ended:
        return await reader.take()
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            return await reader.take()
    return []


async def test_a_reader_waits_for_what_comes_and_merges_what_waits() -> None:
    log = RetainedLog(PLENTY)
    reader = Reader(log, {})
    taken = asyncio.create_task(reader.take())
    await asyncio.sleep(0)
    assert not taken.done()
    log.add(Accepted(request_id="r"))
    reader.wake()
    assert await taken == [Accepted(request_id="r")]
    for first in range(3):
        log.add(delta(0, first, [first]))
        log.add(delta(1, first, [first]))
    assert await reader.take() == [delta(0, 0, [0, 1, 2]), delta(1, 0, [0, 1, 2])]


async def test_nothing_is_put_before_another_event() -> None:
    log = RetainedLog(PLENTY)
    continued = Continued(attempt=2, reason="WORKER_LOST", exact=True)
    for event in (delta(0, 0, [1]), continued, delta(0, 1, [2])):
        log.add(event)
    assert await Reader(log, {}).take() == [delta(0, 0, [1]), continued, delta(0, 1, [2])]


async def test_a_long_log_comes_in_bounded_pieces() -> None:
    log = RetainedLog(PLENTY)
    for first in range(1000):
        log.add(delta(0, first, [first]))
    log.end(None)
    reader = Reader(log, {})
    pieces = [len(event.token_ids) for event in await rest(reader) if isinstance(event, Delta)]
    assert sum(pieces) == 1000
    assert max(pieces) < 300


async def test_the_end_comes_after_all_that_was_said() -> None:
    log = RetainedLog(PLENTY)
    log.add(delta(0, 0, [1]))
    log.end(WorkerLost("gone"))
    reader = Reader(log, {})
    assert await reader.take() == [delta(0, 0, [1])]
    with pytest.raises(WorkerLost):
        await reader.take()


async def test_a_reader_that_is_dismissed_hears_nothing_but_why() -> None:
    log = RetainedLog(PLENTY)
    reader = Reader(log, {})
    taken = asyncio.create_task(reader.take())
    await asyncio.sleep(0)
    reader.dismiss(Cancelled("another reads it"))
    log.add(delta(0, 0, [1]))
    with pytest.raises(Cancelled):
        await taken


async def test_only_a_reader_that_wants_what_is_dropped_is_too_slow() -> None:
    log = RetainedLog(PLENTY)
    log.add(delta(0, 0, [1]))
    early, late = Reader(log, {}), Reader(log, {0: place([1, 2])})
    log.add(delta(0, 1, [2]))
    log.shrink(PLENTY)
    log.add(delta(0, 2, [3]))
    assert not log.whole
    assert await late.take() == [delta(0, 2, [3])]
    with pytest.raises(SlowConsumer):
        await early.take()
    log.add(delta(0, 3, [4]))
    log.add(delta(0, 4, [5]))
    with pytest.raises(SlowConsumer):
        await late.take()
