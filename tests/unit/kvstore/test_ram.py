from __future__ import annotations

import pytest

from weir_kvstore.tiers.ram import RamSlots


async def filled(tier: RamSlots, block_id: int, *pieces: bytes) -> None:
    assert tier.claim(block_id, sum(map(len, pieces)))
    offset = 0
    for piece in pieces:
        await tier.write(block_id, offset, piece)
        offset += len(piece)


async def test_bytes_come_back_in_any_range() -> None:
    tier = RamSlots(100)
    await filled(tier, 1, b"abc", b"defg")
    await filled(tier, 2, b"whole")
    assert await tier.read(1, 0, 7) == b"abcdefg"
    assert await tier.read(1, 2, 3) == b"cde"
    assert await tier.read(2, 1, 3) == b"hol"
    into = bytearray(3)
    await tier.read_into(1, 4, memoryview(into))
    assert into == b"efg"
    tier.check_integrity()


async def test_nothing_is_copied() -> None:
    tier, piece = RamSlots(100), b"one piece"
    await filled(tier, 1, piece)
    assert await tier.read(1, 0, len(piece)) is piece
    await filled(tier, 2, b"two ", b"pieces")
    first, second = await tier.read(2, 0, 10), await tier.read(2, 4, 6)
    assert isinstance(first, memoryview)
    assert isinstance(second, memoryview)
    assert first.obj is second.obj


async def test_room_is_claimed_before_it_is_filled_and_freed_exactly() -> None:
    tier = RamSlots(10)
    assert tier.claim(1, 7)
    assert not tier.claim(2, 4)
    assert tier.used_bytes == 7
    assert tier.claim(2, 3)
    assert tier.used_bytes == tier.capacity_bytes == 10
    tier.free(1)
    assert tier.used_bytes == 3
    tier.free(2)
    assert tier.used_bytes == 0
    tier.check_integrity()


async def test_our_own_mistakes_are_asserted() -> None:
    tier = RamSlots(10)
    await filled(tier, 1, b"ab")
    with pytest.raises(AssertionError):
        tier.claim(1, 1)
    with pytest.raises(AssertionError):
        tier.claim(2, 0)
    assert tier.claim(3, 4)
    with pytest.raises(AssertionError):
        await tier.read(3, 0, 4)
    with pytest.raises(AssertionError):
        await tier.write(3, 2, b"ab")
    with pytest.raises(AssertionError):
        await tier.write(3, 0, b"abcde")
    with pytest.raises(KeyError):
        tier.free(4)
