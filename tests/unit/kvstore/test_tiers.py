"""A store over several tiers: found wherever it is, brought up, removed everywhere, and never wrong."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass

import pytest

from fakes.asked_tier import AskedTier
from fakes.faulty_slots import FaultySlots
from unit.kvstore.making import NAMESPACE, address, check_integrity, corrupt, make_store, make_tier, name, whole
from unit.kvstore.test_put import put
from unit.kvstore.test_reads import lease, read
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock, assert_no_leases, settle
from weir_kvstore import reads, shared_tiers
from weir_kvstore.chains import Range
from weir_kvstore.checksum import checksum
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.reads import read_lease
from weir_kvstore.record import Record
from weir_kvstore.staging import PutResult
from weir_kvstore.store import BlockStore, Match
from weir_kvstore.tier import Tier


def payload(number: int) -> bytes:
    return bytes([number]) * 10


async def keep(tier: Tier, *numbers: int, chain: bool = True) -> None:
    for number in numbers:
        body = payload(number)
        parent = name(number - 1) if chain and number > 1 else b""
        assert await tier.put(Record(address(number), parent, len(body), checksum(body)), body)


@dataclass
class Store:
    """RAM, a disk and a shared tier; nothing is moved down by itself."""

    clock: VirtualClock
    store: BlockStore
    disk: LocalTier
    shared: AskedTier

    @property
    def ram(self) -> LocalTier:
        return self.store.ram

    @property
    def disk_slots(self) -> FaultySlots:
        assert isinstance(self.disk.slots, FaultySlots)
        return self.disk.slots

    async def match(self, *numbers: int, seconds: float = 10, block_size: int = 0) -> Match:
        hashes = [name(number) for number in numbers]
        return await self.store.match(
            NAMESPACE, hashes, skip_blocks=0, seconds=seconds, owner="me", block_size=block_size
        )

    async def read(self, *numbers: int) -> list[tuple[int, int, bytes]]:
        lease_id = await lease(self.store, *numbers)
        found = await read(self.store, lease_id)
        self.store.leases.release(lease_id)
        return found

    async def close(self) -> None:
        """The books, when nobody holds anything."""
        await self.store.mover.close()
        check_integrity(self.store)
        assert_no_leases(self.store.ledger)


async def make(capacity_bytes: int = 100, min_prefix_tokens: int = 0) -> Store:
    clock = VirtualClock()
    ledger = LeaseLedger(clock)
    disk, shared = make_tier("disk", ledger), AskedTier(make_tier("redis", ledger))
    store = await make_store(
        clock,
        ledger=ledger,
        slower=[disk, shared],
        capacity_bytes=capacity_bytes,
        min_prefix_tokens=min_prefix_tokens,
    )
    return Store(clock, store, disk, shared)


def whole_blocks(*numbers: int) -> list[tuple[int, int, bytes]]:
    return [(number, 0, payload(number)) for number in numbers]


# --- finding


async def test_a_chain_is_found_where_its_blocks_are_nearest() -> None:
    one = await make()
    await keep(one.ram, 1, 2)
    await keep(one.disk, 2, 3, 4)
    await keep(one.shared, 4, 5, 6)
    await keep(one.ram, 7)
    found = await one.match(1, 2, 3, 4, 5, 6, 7, 8)
    assert found.matched_blocks == 7
    assert list(found.ranges) == [Range(2, "ram"), Range(2, "disk"), Range(2, "redis"), Range(1, "ram")]
    assert found.leased_bytes == 50, "a shared tier tells no sizes"
    assert [len(hashes) for hashes in one.shared.asked] == [4, 1], "only for what the others lack"
    counted = [(tier.counters.hits, tier.counters.misses) for tier in (one.ram, one.disk)]
    assert counted == [(3, 5), (2, 3)]


async def test_who_is_on_disk_costs_no_question() -> None:
    one = await make()
    await keep(one.ram, 1)
    await keep(one.disk, 2)
    assert (await one.match(1, 2)).matched_blocks == 2
    assert one.shared.asked == []


async def test_a_shared_tier_that_does_not_answer_is_soon_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tiers, "_MATCH_SECONDS", 0.01)
    one = await make()
    await keep(one.ram, 1)
    one.shared.answers.clear()
    for _ in range(5):
        assert (await one.match(1, 2, seconds=0)).matched_blocks == 1
    assert len(one.shared.asked) == 3
    one.shared.answers.set()
    await keep(one.shared, 2)
    await one.clock.advance(2)
    assert (await one.match(1, 2, seconds=0)).matched_blocks == 2


async def test_a_lease_holds_what_is_on_disk_too() -> None:
    one = await make()
    await keep(one.disk, 1)
    lease_id = await lease(one.store, 1)
    for number in range(2, 30):
        await keep(one.disk, number, chain=False)
    assert one.disk.find(address(1)) is not None
    one.store.leases.release(lease_id)
    for number in range(30, 60):
        await keep(one.disk, number, chain=False)
    assert one.disk.find(address(1)) is None
    await one.close()


async def test_short_prefixes_are_not_looked_up() -> None:
    one = await make(min_prefix_tokens=32)
    await keep(one.ram, 1, 2)
    assert (await one.match(1, block_size=16)).matched_blocks == 0
    assert (await one.match(1, 2, block_size=16)).matched_blocks == 2
    assert (await one.match(1)).matched_blocks == 1, "who does not tell is not asked"


# --- reading


async def test_what_is_read_is_in_ram_afterwards() -> None:
    one = await make()
    await keep(one.ram, 1)
    await keep(one.disk, 2, 3)
    await keep(one.shared, 4)
    assert await one.read(1, 2, 3, 4) == whole_blocks(1, 2, 3, 4)
    assert one.ram.counters.promoted == 3
    assert list((await one.match(1, 2, 3, 4, seconds=0)).ranges) == []
    assert all(one.ram.find(address(number)) for number in (1, 2, 3, 4))
    await one.close()


async def test_without_room_it_is_read_from_a_buffer() -> None:
    one = await make(capacity_bytes=10)
    await keep(one.ram, 9)
    lease_id = await lease(one.store, 9)
    await keep(one.disk, 1, 2)
    assert await one.read(1, 2) == whole_blocks(1, 2)
    assert one.ram.counters.promoted == 0
    one.store.leases.release(lease_id)
    await one.close()


async def test_readers_share_one_bring_up() -> None:
    one = await make()
    await keep(one.shared, 1)
    leases = [await lease(one.store, 1) for _ in range(3)]
    one.shared.answers.clear()
    reading = [asyncio.ensure_future(read(one.store, lease_id)) for lease_id in leases]
    await settle()
    assert len(one.store.promotions) == 1
    reading[0].cancel()
    await settle()
    one.shared.answers.set()
    assert await asyncio.gather(*reading[1:]) == [whole_blocks(1)] * 2
    assert (one.ram.counters.promoted, one.shared.counters.read_bytes) == (1, 10)
    for lease_id in leases:
        one.store.leases.release(lease_id)
    await one.close()


async def test_the_next_blocks_are_on_their_way_while_one_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "AHEAD_BLOCKS", 3)
    one = await make()
    await keep(one.disk, 1, 2, 3, 4, 5)
    reading = read_lease(one.store, await lease(one.store, 1, 2, 3, 4, 5), owner="me")
    await anext(reading)
    await settle()
    assert [one.ram.find(address(number)) is not None for number in range(1, 6)] == [True] * 3 + [False] * 2
    assert [bytes(piece.chunk) async for piece in reading] == [payload(number) for number in range(2, 6)]


async def test_only_as_many_as_wanted() -> None:
    one = await make()
    await keep(one.disk, 1, 2, 3)
    pieces = read_lease(one.store, await lease(one.store, 1, 2, 3), owner="me", max_blocks=2)
    assert [bytes(piece.chunk) async for piece in pieces] == [payload(1), payload(2)]


async def test_a_block_that_is_wrong_in_one_tier_comes_from_the_next() -> None:
    one = await make()
    await keep(one.ram, 1)
    await keep(one.disk, 1)
    await keep(one.shared, 1)
    corrupt(one.store, 1)
    one.disk_slots.spoil(address(1))
    assert await one.read(1) == whole_blocks(1)
    counted = [tier.counters.corrupt for tier in (one.ram, one.disk, one.shared)]
    assert counted == [1, 1, 0]
    assert await one.read(1) == whole_blocks(1), "it is in RAM again"
    await one.close()


async def test_a_shared_tier_that_promised_too_much_is_a_miss() -> None:
    one = await make()
    await keep(one.ram, 1)
    await keep(one.shared, 2)
    lease_id = await lease(one.store, 1, 2)
    await one.shared.behind.remove([address(2)])
    assert await read(one.store, lease_id) == whole_blocks(1)


async def test_a_disk_that_fails_is_a_miss_and_loses_nothing() -> None:
    one = await make()
    await keep(one.ram, 1)
    await keep(one.disk, 2)
    one.disk_slots.error = OSError(errno.EIO, "told to")
    assert [await one.read(1, 2) for _ in range(4)][-1] == whole_blocks(1)
    assert (await one.match(1, 2, seconds=0)).matched_blocks == 1
    assert "told to" in one.store.reports()[1].fault
    one.disk_slots.error = None
    await one.clock.advance(2)
    assert await one.read(1, 2) == whole_blocks(1, 2)
    assert not one.store.reports()[1].fault
    await one.close()


async def test_what_was_saved() -> None:
    one = await make()
    body = payload(1)
    await one.disk.put(Record(address(1), b"", 10, checksum(body), "", 1.5), body)
    await one.read(1)
    await one.read(1)
    assert one.store.saved_seconds == 3.0


# --- removing


async def test_removed_is_removed_everywhere() -> None:
    one = await make()
    await keep(one.ram, 1, 2)
    await keep(one.disk, 1, 2, 3)
    await keep(one.shared, 1, 4)
    assert await one.store.remove(NAMESPACE, [name(1), name(3)]) == 2
    for number, there in ((1, 0), (2, 1), (3, 0), (4, 1)):
        assert (await one.match(number, seconds=0)).matched_blocks == there
    assert await one.store.remove(NAMESPACE, None) == 1
    assert [len(tier.index) for tier in (one.ram, one.disk, one.shared.behind)] == [0, 0, 0]


async def test_a_removal_waits_for_what_is_on_its_way_up() -> None:
    one = await make()
    await keep(one.shared, 1)
    lease_id = await lease(one.store, 1)
    one.shared.answers.clear()
    reading = asyncio.ensure_future(read(one.store, lease_id))
    await settle()
    removing = asyncio.ensure_future(one.store.remove(NAMESPACE, [name(1)]))
    await settle()
    assert not removing.done()
    await keep(one.shared.behind, 1)  # another host puts it again
    one.shared.answers.set()
    await removing
    await reading
    assert (await one.match(1, seconds=0)).matched_blocks == 0
    one.store.leases.release(lease_id)
    await one.close()


async def test_what_was_removed_is_read_to_its_end_and_seen_by_nobody() -> None:
    one = await make()
    await keep(one.disk, 1)
    lease_id = await lease(one.store, 1)
    await one.store.remove(NAMESPACE, None)
    assert await read(one.store, lease_id) == whole_blocks(1)
    assert one.ram.find(address(1)) is None
    one.store.leases.release(lease_id)
    await one.close()


# --- putting


async def test_what_is_on_disk_need_not_be_put() -> None:
    one = await make()
    await keep(one.disk, 1)
    assert await put(one.store, whole(1, payload(1)), whole(2, payload(2), parent=1)) == PutResult(stored=1, present=1)


async def test_what_was_read_ahead_is_read_once_also_without_room() -> None:
    one = await make(capacity_bytes=10)
    await keep(one.ram, 9)
    holding = await lease(one.store, 9)
    await keep(one.disk, 1, 2, 3, 4)
    reading = read_lease(one.store, await lease(one.store, 1, 2, 3, 4), owner="me")
    for number in (1, 2, 3, 4):
        assert bytes((await anext(reading)).chunk) == payload(number)
        await settle()
    assert one.disk.counters.read_bytes == 40
    one.store.leases.release(holding)
