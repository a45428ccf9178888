"""A source's own call is followed without a hole, and goes on where it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from contract.kv_bus_contract import Known, removed, stored
from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.errors import Internal
from weir_chassis.event_log import EventLog
from weir_chassis.kv_events.blocks import HeldBlocks, new_log, told
from weir_chassis.kv_events.watch import KvEventWatch
from weir_chassis.kv_events.wire import Source

SOURCE = Source("executor", "a:1")


@dataclass
class Message:
    epoch: int
    sequence: int
    events: Sequence[KvEvent]


async def messages(*given: Message) -> AsyncIterator[Message]:
    for message in given:
        yield message


async def call(log: EventLog[KvEvent], watch: KvEventWatch, *, ends_after: int) -> AsyncIterator[Message]:
    """As a service answers, until so many events have been told."""
    async for batch in log.follow(watch.epoch, watch.from_sequence):
        yield Message(log.epoch, batch.sequence, told(batch))
        if batch.sequence >= ends_after:
            return


def agrees(known: Known, log: EventLog[KvEvent]) -> bool:
    held = log._held
    assert isinstance(held, HeldBlocks)
    return known.held[SOURCE]._held == held._held


async def test_it_begins_with_a_snapshot_and_a_later_call_goes_on() -> None:
    log, known = new_log(1, 1000), Known()
    watch = KvEventWatch(SOURCE, known)
    assert (watch.epoch, watch.from_sequence) == (None, None)
    log.append(stored(1, 5))
    await watch.follow(call(log, watch, ends_after=1))
    assert (watch.epoch, watch.from_sequence) == (1, 2)
    log.append([*removed(5), *stored(9, 2)])
    known.held[SOURCE].apply(stored(77)[0])  # a snapshot would take it away again
    await watch.follow(call(log, watch, ends_after=3))
    assert not agrees(known, log), "it went on, and was not told anew"
    known.held[SOURCE].apply(removed(77)[0])
    assert agrees(known, log)


async def test_another_incarnation_tells_anew() -> None:
    log, known = new_log(1, 1000), Known()
    watch = KvEventWatch(SOURCE, known)
    log.append(stored(1, 5))
    await watch.follow(call(log, watch, ends_after=1))
    log = new_log(2, 1000)
    log.append(stored(50, 2))
    await watch.follow(call(log, watch, ends_after=1))
    assert agrees(known, log)


@pytest.mark.parametrize("gap", [Message(1, 4, stored(9)), Message(2, 2, stored(9))], ids=["number", "epoch"])
async def test_a_gap_voids_what_was_known(gap: Message) -> None:
    log, known = new_log(1, 1000), Known()
    watch = KvEventWatch(SOURCE, known)
    log.append(stored(1, 5))
    await watch.follow(call(log, watch, ends_after=1))
    with pytest.raises(Internal, match="left out"):
        await watch.follow(messages(gap))
    assert SOURCE not in known.held
    assert watch.epoch is None, "the next call asks for a snapshot"


async def test_a_call_that_is_cancelled_within_a_snapshot_is_not_gone_on_from() -> None:
    log, known = new_log(1, 100_000), Known()
    watch = KvEventWatch(SOURCE, known)
    for first in range(0, 20_000, 2_000):
        log.append(stored(first, 2_000))
    task = asyncio.create_task(watch.follow(call(log, watch, ends_after=10)))
    while SOURCE not in known.held or not len(known.held[SOURCE]):
        await asyncio.sleep(0)
    assert len(known.held[SOURCE]) < 20_000, "others have their turns in between"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert watch.epoch is None
