"""Places of blocks that are in RAM, or come there; what RAM has no room for by value; a miss ends it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from unit.kvstore.making import address, check_integrity, corrupt, make_store, name, record, whole
from unit.kvstore.test_put import put
from unit.kvstore.test_reads import lease
from weir_chassis.errors import InvalidArgument, LeaseExpired, NotFound
from weir_chassis.testing import VirtualClock, assert_no_leases
from weir_kvstore import arena_reads as module
from weir_kvstore.arena_reads import place_lease, report_corrupt
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.reads import Piece
from weir_kvstore.rules import Rules
from weir_kvstore.store import BlockStore
from weir_kvstore.tiers.arena import ArenaSlots

NUMBERS = (1, 2, 3, 4, 5)


async def with_disk(ram_bytes: int, clock: VirtualClock | None = None) -> tuple[BlockStore, LocalTier]:
    """Blocks of ten bytes each on a slower tier, and none in RAM yet."""
    store = await make_store(clock or VirtualClock(), capacity_bytes=ram_bytes, max_staged_bytes=ram_bytes)
    disk = LocalTier("disk", ArenaSlots(1000), store.ledger, Random(0), Rules(100))
    store = BlockStore(store.ram, store.bounds, Random(0), new_lease_id=store.leases._new_id, slower=[disk])
    await store.open()
    for number in NUMBERS:
        assert await disk.put(record(number), bytes(10))
    return store, disk


async def told(store: BlockStore, lease_id: str, max_blocks: int = 0) -> list[tuple[int, ...] | str]:
    """Numbers of blocks that came together by reference, and `value` for each piece that came so."""
    reading = place_lease(store, lease_id, owner="me", max_blocks=max_blocks)
    return ["value" if isinstance(each, Piece) else _numbers(each) async for each in reading]


def _numbers(blocks: Sequence[object]) -> tuple[int, ...]:
    return tuple(int.from_bytes(block.address.block_hash, "big") for block in blocks)  # type: ignore[attr-defined]


async def test_blocks_in_ram_come_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = await make_store(VirtualClock())
    await put(store, *(whole(number, bytes(10)) for number in NUMBERS))
    lease_id = await lease(store, *NUMBERS)
    assert await told(store, lease_id) == [(1, 2, 3, 4, 5)]
    assert await told(store, lease_id, max_blocks=2) == [(1, 2)]
    monkeypatch.setattr(module, "_MAX_PLACES", 2)
    assert await told(store, lease_id) == [(1, 2), (3, 4), (5,)]
    assert store.ram.counters.read_bytes == 10 * 12


async def test_a_quarantined_block_ends_it() -> None:
    store = await make_store(VirtualClock())
    await put(store, *(whole(number, bytes(10)) for number in NUMBERS))
    lease_id = await lease(store, *NUMBERS)
    corrupt(store, 3)
    assert await told(store, lease_id) == [(1, 2, 3, 4, 5)]  # the reader verifies, and says what it finds
    assert await report_corrupt(store, lease_id, name(3), owner="me")
    assert await told(store, lease_id) == [(1, 2)]
    assert store.ram.counters.corrupt == 1


async def test_a_report_of_a_sound_block_changes_nothing() -> None:
    store = await make_store(VirtualClock())
    await put(store, whole(1, bytes(10)))
    lease_id = await lease(store, 1)
    assert not await report_corrupt(store, lease_id, name(1), owner="me")
    assert await told(store, lease_id) == [(1,)]
    with pytest.raises(InvalidArgument, match="no leased block"):
        await report_corrupt(store, lease_id, name(2), owner="me")
    with pytest.raises(NotFound):
        await report_corrupt(store, "unknown", name(1), owner="me")


async def test_what_is_elsewhere_is_brought_up_and_stays_for_the_lease() -> None:
    store, _ = await with_disk(ram_bytes=50)
    lease_id = await lease(store, *NUMBERS)
    assert [number for answer in await told(store, lease_id) for number in answer] == list(NUMBERS)
    assert store.ram.slots.used_bytes == 50
    assert (await put(store, whole(9, bytes(10)))).refused == 1
    assert [number for answer in await told(store, lease_id) for number in answer] == list(NUMBERS)
    store.leases.release(lease_id)
    assert (await put(store, whole(9, bytes(10)))).stored == 1
    check_integrity(store)
    assert_no_leases(store.ledger)


async def test_what_ram_has_no_room_for_comes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHUNK_BYTES", 6)
    store, _ = await with_disk(ram_bytes=30)
    lease_id = await lease(store, *NUMBERS)
    answers = await told(store, lease_id)
    places = [number for answer in answers if answer != "value" for number in answer]
    assert places == [1, 2, 3]
    assert answers[-4:] == ["value"] * 4
    check_integrity(store)


async def test_a_block_that_went_bad_in_ram_comes_from_the_slower_tier() -> None:
    store, _ = await with_disk(ram_bytes=50)
    lease_id = await lease(store, 1, 2)
    await told(store, lease_id)
    corrupt(store, 1)
    assert await report_corrupt(store, lease_id, name(1), owner="me")
    assert [number for answer in await told(store, lease_id) for number in answer] == [1, 2]
    assert store.ram.index.find(address(1)) is not None


async def test_a_block_that_is_nowhere_ends_it() -> None:
    store, disk = await with_disk(ram_bytes=50)
    lease_id = await lease(store, *NUMBERS)
    block = disk.index.find(address(2))
    assert block is not None
    assert isinstance(disk.slots, ArenaSlots)
    disk.slots._memory.view[disk.slots.offset(block.block_id)] ^= 1
    assert await told(store, lease_id) == [(1,)]
    assert disk.counters.corrupt == 1


async def test_a_lease_that_ends_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_PLACES", 1)
    clock = VirtualClock()
    store = await make_store(clock)
    await put(store, *(whole(number, bytes(10)) for number in NUMBERS))
    lapsing, released = await lease(store, 1, 2, seconds=1), await lease(store, 1, 2)
    reading = [place_lease(store, lease_id, owner="me") for lease_id in (lapsing, released)]
    for each in reading:
        await anext(each)
    await clock.advance(1)
    store.leases.release(released)
    with pytest.raises(LeaseExpired):
        await anext(reading[0])
    with pytest.raises(NotFound):
        await anext(reading[1])
    with pytest.raises(NotFound):
        await anext(place_lease(store, "unknown", owner="me"))
    assert_no_leases(store.ledger)
