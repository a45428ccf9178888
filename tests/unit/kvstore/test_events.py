"""A turn of the event loop becomes the fewest events that tell what it did, in its order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from unit.kvstore.making import NAMESPACE, address, name
from weir.inference.v1.kv_event_pb2 import KvEvent
from weir.kvstore.v1.block_hash import split_hashes
from weir_chassis.kv_events.blocks import HeldBlocks, KvEventLog, new_log
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock
from weir_kvstore.checksum import checksum
from weir_kvstore.events import TierEvents
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.record import Record
from weir_kvstore.rules import Rules
from weir_kvstore.tiers.disk import SegmentSlots

OTHER = b"o" * 16


def record(number: int, parent: int | None = None, namespace: bytes = NAMESPACE) -> Record:
    return Record(address(number, namespace), b"" if parent is None else name(parent), 10, 0)


def chain(*numbers: int) -> list[Record]:
    return [record(number, parent) for number, parent in zip(numbers, [None, *numbers], strict=False)]


def watched() -> tuple[TierEvents, KvEventLog]:
    log = new_log(1, 1000)
    return TierEvents(log), log


def shown(event: KvEvent) -> tuple[str, str, list[int]]:
    kind = event.WhichOneof("event")
    told = event.stored if kind == "stored" else event.removed
    return str(kind), told.tier, [int.from_bytes(block_hash) for block_hash in split_hashes(told.block_hashes)]


def told_by(log: KvEventLog) -> list[tuple[str, str, list[int]]]:
    events = log.remembered(1)
    assert events is not None
    return [shown(event) for event in events]


async def test_a_chain_is_one_event_and_so_is_what_goes_together() -> None:
    tier, log = watched()
    tier.stored("ram", chain(1, 2, 3))
    tier.evicting("ram", chain(1))
    for block in chain(3, 2):
        tier.hidden("ram", [block])
    await asyncio.sleep(0)
    assert told_by(log) == [("stored", "ram", [1, 2, 3]), ("removed", "ram", [3, 2])]


async def test_what_is_apart_stays_apart() -> None:
    tier, log = watched()
    tier.stored("ram", [record(1), record(2, 1), record(4, 3), record(5, 4, OTHER)])
    tier.stored("disk", [record(6, 5)])
    tier.hidden("disk", [record(6, 5)])
    tier.hidden("ram", [record(1), record(1, namespace=OTHER)])
    tier.stored("ram", [record(2, 1)])
    await asyncio.sleep(0)
    assert told_by(log) == [
        ("stored", "ram", [1, 2]),
        ("stored", "ram", [4]),
        ("stored", "ram", [5]),
        ("stored", "disk", [6]),
        ("removed", "disk", [6]),
        ("removed", "ram", [1]),
        ("removed", "ram", [1]),
        ("stored", "ram", [2]),
    ]
    events = log.remembered(1) or []
    assert [event.stored.namespace or event.removed.namespace for event in events].count(OTHER) == 2
    assert events[1].stored.parent_block_hash == name(3)


async def test_each_turn_is_told_by_itself() -> None:
    tier, log = watched()
    tier.stored("ram", chain(1))
    await asyncio.sleep(0)
    tier.stored("ram", [record(2, 1)])
    assert log.sequence == 1
    await asyncio.sleep(0)
    assert log.sequence == 2


@given(seed=st.integers(0, 2**32))
async def test_whoever_follows_the_log_knows_what_the_tiers_hold(seed: int) -> None:
    random, truth = Random(seed), set[tuple[str, bytes, int]]()
    tier, log = watched()
    for _ in range(40):
        where, namespace, number = (
            random.choice(["ram", "disk"]),
            random.choice([NAMESPACE, OTHER]),
            random.randrange(9),
        )
        if random.random() < 0.6:
            tier.stored(where, [record(number, number - 1 if number else None, namespace)])
            truth.add((where, namespace, number))
        else:
            tier.hidden(where, [record(number, namespace=namespace)])
            truth.discard((where, namespace, number))
        if random.random() < 0.3:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    held = set[tuple[str, bytes, int]]()
    for event in (await log.read(None, None)).events:
        _, where, numbers = shown(event)
        held |= {(where, event.stored.namespace, number) for number in numbers}
    assert held == truth


@asynccontextmanager
async def disk_tier(path: Path, clock: VirtualClock) -> AsyncIterator[tuple[LocalTier, KvEventLog]]:
    """A tier over this directory, watched from before it is opened."""
    rules = Rules(max_blocks=100, ttl_seconds=60)
    tier = LocalTier("disk", SegmentSlots(path, 1 << 20, clock), LeaseLedger(clock), Random(0), rules)
    events, log = watched()
    tier.watch(events)
    await tier.open()
    yield tier, log
    await tier.close()


async def held_by(log: KvEventLog) -> dict[bytes, bytes]:
    """Block → parent, on disk in our namespace: as a new follower hears it."""
    await asyncio.sleep(0)
    held = HeldBlocks()
    for event in (await log.read(None, None)).events:
        held.apply(event)
    assert len(held) == len(held.parents("disk", NAMESPACE)), "nothing elsewhere"
    return held.parents("disk", NAMESPACE)


async def test_what_a_tier_finds_again_after_a_restart_is_told_and_what_leaves_it_too(tmp_path: Path) -> None:
    clock, payload = VirtualClock(), b"x" * 1000
    records = [replace(record, size_bytes=1000, checksum=checksum(payload)) for record in chain(1, 2, 3)]
    async with disk_tier(tmp_path, clock) as (tier, log):
        for one in records:
            assert await tier.put(one, payload)
        whole = await held_by(log)
        assert whole == {name(1): b"", name(2): name(1), name(3): name(2)}
    async with disk_tier(tmp_path, clock) as (tier, log):
        assert await held_by(log) == whole
        await tier.remove([address(2)])
        assert set(await held_by(log)) == {name(1), name(3)}
        await clock.advance(61)
        tier.sweep()
        assert await held_by(log) == {}, "their time is over"
