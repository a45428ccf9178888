from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from weir_chassis.mapped_memory import private_memory
from weir_kvstore.record import Address, Record
from weir_kvstore.tiers import arena as module
from weir_kvstore.tiers.arena import ArenaSlots
from weir_kvstore.tiers.memory import ArenaMemory, shared_memory

MIB = 1024 * 1024


async def filled(slots: ArenaSlots, block_id: int, *pieces: bytes) -> None:
    assert slots.claim(block_id, sum(map(len, pieces)))
    offset = 0
    for piece in pieces:
        await slots.write(block_id, offset, piece)
        offset += len(piece)
    await slots.commit(block_id, Record(Address(b"", b""), b"", offset, 0))


async def test_bytes_come_back_in_any_range() -> None:
    slots = ArenaSlots(100)
    await filled(slots, 1, b"abc", b"defg")
    await filled(slots, 2, b"whole")
    assert await slots.read(1, 0, 7) == b"abcdefg"
    assert await slots.read(1, 2, 3) == b"cde"
    assert await slots.read(2, 1, 3) == b"hol"
    into = bytearray(3)
    await slots.read_into(1, 4, memoryview(into))
    assert into == b"efg"
    slots.check_integrity()


async def test_reading_is_no_copy_and_no_way_to_write() -> None:
    slots = ArenaSlots(100)
    await filled(slots, 1, b"two ", b"pieces")
    view = await slots.read(1, 4, 6)
    assert isinstance(view, memoryview)
    assert view.readonly
    await slots.write(1, 4, b"P")
    assert bytes(view) == b"Pieces"


async def test_room_is_claimed_before_it_is_filled_and_freed_exactly() -> None:
    slots = ArenaSlots(10)
    assert slots.claim(1, 7)
    assert not slots.claim(2, 4)
    assert slots.used_bytes == 7
    assert slots.claim(2, 3)
    assert slots.used_bytes == slots.capacity_bytes == 10
    slots.free(1)
    assert slots.used_bytes == 3
    slots.free(2)
    assert slots.used_bytes == 0
    slots.check_integrity()


async def test_our_own_mistakes_are_asserted() -> None:
    slots = ArenaSlots(10)
    await filled(slots, 1, b"ab")
    with pytest.raises(AssertionError):
        slots.claim(1, 1)
    with pytest.raises(AssertionError):
        slots.claim(2, 0)
    with pytest.raises(AssertionError):
        await slots.read(1, 1, 2)
    with pytest.raises(AssertionError):
        await slots.write(1, 0, b"abc")
    with pytest.raises(KeyError):
        slots.free(4)


async def test_mixed_sizes_may_leave_gaps_that_only_freeing_closes() -> None:
    slots = ArenaSlots(4 * MIB)  # and 1.5 MiB more
    block_ids = range(44)
    assert all(slots.claim(block_id, MIB // 8) for block_id in block_ids[:32])
    for block_id in block_ids[:32:2]:
        slots.free(block_id)
    assert slots.claim(100, MIB)
    assert not slots.claim(101, MIB)
    for block_id in block_ids[1:16:2]:
        slots.free(block_id)
    assert slots.claim(101, MIB)
    slots.check_integrity()


async def test_a_neighbour_finds_a_block_at_its_offset(tmp_path: Path) -> None:
    slots = ArenaSlots(MIB, partial(shared_memory, tmp_path, "a1"))
    await filled(slots, 1, bytes(1000))
    await filled(slots, 2, b"payload")
    assert slots.shared is not None
    assert (slots.shared.arena_id, slots.offset(2)) == ("a1", 1024)
    assert slots.shared.path.read_bytes()[1024:1031] == b"payload"
    await slots.close()
    assert slots.shared is None
    assert list(tmp_path.iterdir()) == []


async def test_memory_is_touched_ahead_of_its_use_and_not_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOUCH_BYTES", MIB)
    monkeypatch.setattr(module, "_AHEAD_BYTES", 4 * MIB)
    slots = ArenaSlots(1024 * MIB, partial(shared_memory, tmp_path, "a1"))
    assert slots.shared is not None
    file = slots.shared.path
    toucher = asyncio.create_task(slots.touch_ahead())
    async with asyncio.timeout(10):
        while file.stat().st_blocks * 512 < 4 * MIB:
            await asyncio.sleep(0.002)
        assert slots.claim(1, 3 * MIB)
        while file.stat().st_blocks * 512 < 7 * MIB:
            await asyncio.sleep(0.002)
    toucher.cancel()
    await asyncio.gather(toucher, return_exceptions=True)
    assert file.stat().st_blocks * 512 <= 8 * MIB
    await slots.close()


class ShortMemory(ArenaMemory):
    """Has no more than a mebibyte to give."""

    def populate(self, start: int, size_bytes: int) -> bool:
        return start + size_bytes <= MIB


async def test_without_memory_nothing_is_claimed_and_it_is_said_once() -> None:
    slots = ArenaSlots(8 * MIB, lambda size_bytes: ShortMemory(private_memory(size_bytes)))
    with capture_logs() as logs:
        assert slots.claim(1, MIB)
        assert not slots.claim(2, MIB)
        assert not slots.claim(3, MIB)
    assert [line["event"] for line in logs] == ["arena_short_of_memory"]
    assert slots.used_bytes == MIB
    slots.free(1)
    assert slots.claim(4, MIB)
    slots.check_integrity()
