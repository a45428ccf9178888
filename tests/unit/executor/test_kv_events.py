"""A follower of the log knows what is held, or is told to forget: nothing is skipped in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.errors import Draining
from weir_executor.engine import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
from weir_executor.kv_events import KvBatch, KvEventLog

EPOCH = 42


def name(i: int) -> bytes:
    return i.to_bytes(16, "little")


def chain(first: int, count: int, parent: bytes = b"") -> BlockStored:
    return BlockStored([name(i) for i in range(first, first + count)], parent)


class Follower:
    def __init__(self, log: KvEventLog, epoch: int | None = None, from_sequence: int | None = None) -> None:
        self.batches: AsyncGenerator[KvBatch, None] = log.follow(epoch, from_sequence)
        self.held: dict[bytes, bytes] = {}
        self.sequence, self.resets = 0, 0

    async def read(self) -> KvBatch:
        batch = await asyncio.wait_for(anext(self.batches), 1)
        if batch.reset:
            self.resets += 1
            self.held.clear()
        for event in batch.events:
            apply(self.held, event)
        self.sequence = batch.sequence
        return batch


def apply(held: dict[bytes, bytes], event: KvEvent) -> None:
    match event:
        case BlockStored():
            parents = [event.parent_block_hash, *event.block_hashes[:-1]]
            held.update(zip(event.block_hashes, parents, strict=True))
        case BlockRemoved():
            for block_hash in event.block_hashes:
                held.pop(block_hash, None)
        case AllBlocksCleared():
            held.clear()


async def test_a_new_follower_gets_a_reset_with_all_that_is_held() -> None:
    log = KvEventLog(EPOCH, 100)
    log.append([chain(1, 3), chain(10, 2, name(1)), BlockRemoved([name(3)])])
    follower = Follower(log)
    batch = await follower.read()
    assert batch.reset
    assert batch.sequence == 3
    assert batch.events == [BlockStored([name(1), name(2)], b""), BlockStored([name(10), name(11)], name(1))]
    assert len(log) == 4


async def test_an_empty_log_begins_with_an_empty_reset() -> None:
    batch = await Follower(KvEventLog(EPOCH, 100)).read()
    assert (batch.reset, batch.events, batch.sequence) == (True, [], 0)


async def test_a_follower_hears_what_happens() -> None:
    log = KvEventLog(EPOCH, 100)
    follower = Follower(log)
    await follower.read()
    reading = asyncio.create_task(follower.read())
    await asyncio.sleep(0)
    assert not reading.done()
    log.append([chain(1, 2)])
    assert (await reading).events == [chain(1, 2)]
    log.append([AllBlocksCleared()])
    await follower.read()
    assert follower.held == {}
    assert follower.resets == 1


async def test_a_follower_that_comes_back_hears_what_it_missed() -> None:
    log = KvEventLog(EPOCH, 100)
    log.append([chain(1, 1), chain(2, 1), chain(3, 1)])
    follower = Follower(log, EPOCH, 2)
    batch = await follower.read()
    assert not batch.reset
    assert batch.events == [chain(2, 1), chain(3, 1)]


async def test_a_follower_that_missed_nothing_waits() -> None:
    log = KvEventLog(EPOCH, 100)
    log.append([chain(1, 1)])
    follower = Follower(log, EPOCH, 2)
    reading = asyncio.create_task(follower.read())
    await asyncio.sleep(0)
    log.append([chain(2, 1)])
    assert (await reading).events == [chain(2, 1)]


@pytest.mark.parametrize(
    ("epoch", "from_sequence"),
    [(EPOCH + 1, 3), (EPOCH, 1), (EPOCH, 99), (None, 3), (EPOCH, None)],
    ids=["epoch", "forgotten", "future", "no_epoch", "no_sequence"],
)
async def test_a_position_that_is_not_known_is_reset(epoch: int | None, from_sequence: int | None) -> None:
    log = KvEventLog(EPOCH, 3)
    log.append([chain(i, 1) for i in range(1, 6)])
    batch = await Follower(log, epoch, from_sequence).read()
    assert batch.reset
    assert batch.sequence == 5


async def test_a_follower_that_falls_behind_is_reset() -> None:
    log = KvEventLog(EPOCH, 4)
    follower = Follower(log)
    await follower.read()
    for i in range(10):
        log.append([chain(i, 1)])
    await follower.read()
    assert follower.resets == 2
    assert set(follower.held) == {name(i) for i in range(10)}


async def test_what_is_remembered_is_bounded_in_blocks_not_in_events() -> None:
    """An event may tell of a whole prompt: what a follower missed must fit one message."""
    log = KvEventLog(EPOCH, 10)
    log.append([chain(1, 1)])
    log.append([chain(10, 8)])
    assert (await Follower(log, EPOCH, 1).read()).events == [chain(1, 1), chain(10, 8)]
    log.append([chain(20, 2)])
    assert (await Follower(log, EPOCH, 1).read()).reset
    assert (await Follower(log, EPOCH, 2).read()).events == [chain(10, 8), chain(20, 2)]
    log.append([chain(30, 11)])
    assert (await Follower(log, EPOCH, 4).read()).reset, "one event alone is too much"
    log.append([AllBlocksCleared()])
    assert (await Follower(log, EPOCH, 5).read()).events == [AllBlocksCleared()]


async def test_close_ends_those_who_wait_and_those_who_come() -> None:
    log = KvEventLog(EPOCH, 4)
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
    random, log, truth = Random(seed), KvEventLog(EPOCH, capacity), dict[bytes, bytes]()
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
    log.append([chain(99, 1)])
    apply(truth, chain(99, 1))
    while follower.sequence < log.sequence:
        await follower.read()
    assert follower.held == truth
    late = Follower(log)
    await late.read()
    assert late.held == truth
    async with aclosing(follower.batches), aclosing(late.batches):
        pass


def _some_event(random: Random, truth: dict[bytes, bytes]) -> KvEvent:
    held: Sequence[bytes] = sorted(truth)
    kind = random.random()
    event: KvEvent
    if kind < 0.05:
        event = AllBlocksCleared()
    elif kind < 0.4 and held:
        event = BlockRemoved([random.choice(held)])
    else:
        event = chain(random.randrange(50), random.randrange(1, 4), random.choice(held) if held else b"")
    apply(truth, event)
    return event
