"""A follower of the log knows what is held, or is told to forget: nothing is skipped in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.errors import Draining
from weir_chassis.event_log import Batch, EventLog

EPOCH = 42


@dataclass(frozen=True)
class Change:
    """Things that are held from now on (`put`), or no more."""

    things: Sequence[int]
    put: bool = True


class Things:
    def __init__(self) -> None:
        self.held: dict[int, None] = {}

    def apply(self, event: Change) -> None:
        for thing in event.things:
            if event.put:
                self.held[thing] = None
            else:
                self.held.pop(thing, None)

    def snapshot(self) -> Iterator[Change]:
        return iter([Change([thing]) for thing in self.held])

    def size_of(self, event: Change) -> int:
        return max(1, len(event.things))


Log = EventLog[Change]


def new_log(capacity: int) -> Log:
    return EventLog(EPOCH, capacity, Things())


class Follower:
    def __init__(self, log: Log, epoch: int | None = None, from_sequence: int | None = None) -> None:
        self.batches: AsyncGenerator[Batch[Change], None] = log.follow(epoch, from_sequence)
        self.things = Things()
        self.sequence, self.resets = 0, 0

    async def read(self) -> Batch[Change]:
        batch = await asyncio.wait_for(anext(self.batches), 1)
        if batch.reset:
            self.resets += 1
            self.things.held.clear()
        for event in batch.events:
            self.things.apply(event)
        self.sequence = batch.sequence
        return batch


async def test_a_new_follower_gets_a_reset_with_all_that_is_held() -> None:
    log = new_log(100)
    log.append([Change([1, 2, 3]), Change([10]), Change([3], put=False)])
    batch = await Follower(log).read()
    assert (batch.reset, batch.sequence) == (True, 3)
    assert batch.events == [Change([1]), Change([2]), Change([10])]


async def test_an_empty_log_begins_with_an_empty_reset() -> None:
    batch = await Follower(new_log(100)).read()
    assert (batch.reset, batch.events, batch.sequence) == (True, [], 0)


async def test_a_follower_hears_what_happens() -> None:
    log = new_log(100)
    follower = Follower(log)
    await follower.read()
    reading = asyncio.create_task(follower.read())
    await asyncio.sleep(0)
    assert not reading.done()
    log.append([Change([1, 2])])
    assert (await reading).events == [Change([1, 2])]
    log.append([Change([1, 2], put=False)])
    await follower.read()
    assert (follower.things.held, follower.resets) == ({}, 1)


async def test_a_follower_that_comes_back_hears_what_it_missed() -> None:
    log = new_log(100)
    log.append([Change([1]), Change([2]), Change([3])])
    batch = await Follower(log, EPOCH, 2).read()
    assert not batch.reset
    assert batch.events == [Change([2]), Change([3])]


async def test_a_follower_that_missed_nothing_waits() -> None:
    log = new_log(100)
    log.append([Change([1])])
    reading = asyncio.create_task(Follower(log, EPOCH, 2).read())
    await asyncio.sleep(0)
    log.append([Change([2])])
    assert (await reading).events == [Change([2])]


@pytest.mark.parametrize(
    ("epoch", "from_sequence"),
    [(EPOCH + 1, 3), (EPOCH, 1), (EPOCH, 99), (None, 3), (EPOCH, None)],
    ids=["epoch", "forgotten", "future", "no_epoch", "no_sequence"],
)
async def test_a_position_that_is_not_known_is_reset(epoch: int | None, from_sequence: int | None) -> None:
    log = new_log(3)
    log.append([Change([i]) for i in range(1, 6)])
    batch = await Follower(log, epoch, from_sequence).read()
    assert (batch.reset, batch.sequence) == (True, 5)


async def test_a_follower_that_falls_behind_is_reset() -> None:
    log = new_log(4)
    follower = Follower(log)
    await follower.read()
    for i in range(10):
        log.append([Change([i])])
    await follower.read()
    assert follower.resets == 2
    assert set(follower.things.held) == set(range(10))


async def test_what_is_remembered_is_bounded_by_what_events_tell_of_not_by_their_number() -> None:
    """An event may tell of a whole prompt: what a follower missed must fit one message."""
    log = new_log(10)
    log.append([Change([1])])
    log.append([Change(range(10, 18))])
    assert log.remembered(1) == [Change([1]), Change(range(10, 18))]
    log.append([Change([20, 21])])
    assert log.remembered(1) is None
    assert log.remembered(2) == [Change(range(10, 18)), Change([20, 21])]
    log.append([Change(range(30, 41))])
    assert log.remembered(4) is None, "one event alone is too much"
    log.append([Change([])])
    assert log.remembered(5) == [Change([])]
    assert log.remembered(6) == []
    assert log.remembered(7) is None


async def test_a_snapshot_that_takes_turns_is_of_the_moment_when_it_began() -> None:
    log = new_log(100_000)
    log.append([Change([i]) for i in range(10_000)])
    reading = asyncio.create_task(log.read(None, None))
    await asyncio.sleep(0)
    assert not reading.done()
    log.append([Change([5], put=False), Change([10_001])])
    batch = await reading
    assert batch.sequence == 10_000
    assert [event.things[0] for event in batch.events] == list(range(10_000))


async def test_close_ends_those_who_wait_and_those_who_come() -> None:
    log = new_log(4)
    follower = Follower(log)
    await follower.read()
    reading = asyncio.create_task(follower.read())
    await asyncio.sleep(0)
    log.close(Draining("over"))
    with pytest.raises(Draining):
        await reading
    with pytest.raises(Draining):
        await Follower(log).read()


@given(seed=st.integers(0, 2**32), capacity=st.integers(1, 8))
async def test_whoever_reads_at_whatever_pace_ends_up_knowing_what_is_held(seed: int, capacity: int) -> None:
    random, log, truth = Random(seed), new_log(capacity), Things()
    follower = Follower(log)
    await follower.read()
    for _ in range(30):
        events = [_some_event(random, truth) for _ in range(random.randrange(1, 4))]
        log.append(events)
        if random.random() < 0.4:
            await follower.read()
        if random.random() < 0.1:
            await follower.batches.aclose()
            follower.batches = log.follow(EPOCH, follower.sequence + random.randrange(2))
    log.append([Change([99])])
    truth.apply(Change([99]))
    while follower.sequence < log.sequence:
        await follower.read()
    assert follower.things.held == truth.held
    late = Follower(log)
    await late.read()
    assert late.things.held == truth.held
    async with aclosing(follower.batches), aclosing(late.batches):
        pass


def _some_event(random: Random, truth: Things) -> Change:
    things = [random.randrange(50) for _ in range(random.randrange(1, 4))]
    event = Change(things, put=random.random() < 0.6)
    truth.apply(event)
    return event
