from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fakes.asked_tier import AskedTier
from fakes.faulty_slots import FaultySlots
from unit.kvstore.making import NAMESPACE, address, check_integrity, corrupt, make_store, make_tier, name, whole
from unit.kvstore.test_put import put
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock, assert_no_leases, settle
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.policies.admission import Admission, SecondUse
from weir_kvstore.store import BlockStore


class Fixture:
    """RAM for ten blocks of 10 bytes, of which five may wait; a disk and a shared tier for fifty each."""

    def __init__(self, clock: VirtualClock, store: BlockStore, disk: LocalTier, shared: AskedTier) -> None:
        self.clock, self.store, self.disk, self.shared = clock, store, disk, shared

    async def put(self, *numbers: int) -> None:
        result = await put(self.store, *(whole(number, bytes([number]) * 10) for number in numbers))
        assert result.stored == len(numbers)

    async def use(self, *numbers: int) -> None:
        for number in numbers:
            await self.store.match(NAMESPACE, [name(number)], skip_blocks=0, seconds=0, owner="me")
        self.store.sweep()
        await settle()

    def on_disk(self, *numbers: int) -> list[int]:
        return [number for number in numbers if self.disk.find(address(number)) is not None]


@asynccontextmanager
async def made(
    *, running: bool = True, admission: Admission | None = None, bytes_per_second: float | None = None
) -> AsyncIterator[Fixture]:
    clock = VirtualClock()
    ledger = LeaseLedger(clock)
    disk = make_tier("disk", ledger, capacity_bytes=500)
    shared = AskedTier(make_tier("redis", ledger, capacity_bytes=500))
    store = await make_store(
        clock, ledger=ledger, slower=[disk, shared], admission=admission, bytes_per_second=bytes_per_second
    )
    moving = asyncio.ensure_future(store.mover.run()) if running else None
    yield Fixture(clock, store, disk, shared)
    if moving is not None:
        moving.cancel()
        await asyncio.wait([moving])
        assert moving.cancelled()
    await store.mover.close()
    check_integrity(store)
    assert len(store.mover) == 0
    assert_no_leases(ledger)


async def test_what_is_committed_is_copied_to_every_tier() -> None:
    async with made() as one:
        await one.put(1, 2, 3)
        await settle()
        assert one.on_disk(1, 2, 3) == [1, 2, 3]
        assert len(one.shared.behind.index) == 3
        assert [tier.counters.demoted for tier in one.store.tiers] == [0, 3, 3]
        assert one.store.ledger.counts() == {}
        await one.use(1, 2, 3)
        assert one.disk.counters.written_bytes == 30, "and only once"


async def test_who_waits_is_not_evicted_and_half_of_ram_may_wait() -> None:
    async with made(running=False) as one:
        await one.put(*range(1, 7))
        for number in range(7, 17):
            await one.put(number)
        assert [one.store.ram.find(address(number)) is not None for number in range(1, 7)] == [True] * 5 + [False]
        assert len(one.store.mover) == 10
        assert one.disk.counters.dropped == 11


async def test_who_was_dropped_comes_when_there_is_time() -> None:
    async with made() as one:
        await one.put(*range(1, 11))
        await settle()
        assert one.on_disk(*range(1, 11)) == [1, 2, 3, 4, 5]
        assert one.disk.counters.dropped == 5
        for _ in range(2):
            one.store.sweep()
            await settle()
        assert one.on_disk(*range(1, 11)) == list(range(1, 11))


async def test_who_was_dropped_comes_at_the_latest_when_it_leaves_ram() -> None:
    async with made() as one:
        await one.put(*range(1, 11))
        await settle()
        missing = [number for number in range(1, 11) if number not in one.on_disk(*range(1, 11))]
        for number in range(11, 16):
            await one.put(number)
            await settle()
        left = [number for number in missing if one.store.ram.find(address(number)) is None]
        assert left
        assert one.on_disk(*left) == left


async def test_second_use() -> None:
    async with made(admission=SecondUse()) as one:
        await one.put(1, 2)
        await settle()
        assert one.on_disk(1, 2) == []
        await one.use(2)
        assert one.on_disk(1, 2) == [2]
        assert one.disk.counters.not_admitted == 2


async def test_bandwidth_is_bounded() -> None:
    async with made(bytes_per_second=10) as one:
        await one.put(1)
        await settle()
        await one.put(2)
        await settle()
        assert one.on_disk(1, 2) == [1]
        await one.clock.advance(1)
        assert one.on_disk(1, 2) == [1, 2]


async def test_a_drain_copies_all_that_ram_has() -> None:
    async with made(bytes_per_second=1) as one:
        await one.put(*range(1, 9))
        await settle()
        assert one.on_disk(*range(1, 9)) == [1]
        assert one.disk.counters.dropped > 0
        await one.store.mover.drain()
        assert one.on_disk(*range(1, 9)) == list(range(1, 9))


async def test_a_tier_that_stalls_holds_up_no_other() -> None:
    async with made() as one:
        one.shared.answers.clear()
        for number in range(1, 30):
            await one.put(number)
            await settle()
        assert len(one.on_disk(*range(1, 30))) == 29
        assert one.shared.counters.dropped > 0
        one.shared.answers.set()


async def test_a_tier_that_fails_is_offered_the_block_again() -> None:
    async with made() as one:
        assert isinstance(one.disk.slots, FaultySlots)
        one.disk.slots.error = OSError(errno.ENOSPC, "full")
        await one.put(1)
        await settle()
        assert one.on_disk(1) == []
        assert len(one.store.mover) == 0
        one.disk.slots.error = None
        await one.clock.advance(2)
        await one.use(1)
        assert one.on_disk(1) == [1]


async def test_what_has_gone_bad_in_ram_is_not_copied() -> None:
    async with made(running=False) as one:
        await one.put(1)
        corrupt(one.store, 1)
        await one.store.mover.drain()
        assert one.on_disk(1) == []
        assert one.store.ram.counters.corrupt == 1
        assert one.store.ram.find(address(1)) is None


async def test_what_is_removed_while_it_waits_does_not_come_back() -> None:
    async with made(running=False) as one:
        await one.put(1)
        assert len(one.store.mover) == 2
        await one.store.remove(NAMESPACE, [name(1)])
        assert len(one.store.mover) == 0
        await one.store.mover.drain()
        assert one.on_disk(1) == []


async def test_a_removal_waits_for_what_is_on_its_way_down() -> None:
    async with made() as one:
        one.shared.answers.clear()
        await one.put(1)
        await settle()
        removing = asyncio.ensure_future(one.store.remove(NAMESPACE, None))
        await settle()
        assert not removing.done()
        one.shared.answers.set()
        await removing
        assert len(one.shared.behind.index) == 0
