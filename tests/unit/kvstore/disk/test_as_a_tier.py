"""The disk tier over a restart: what its index promised is there, and what was removed stays away."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from unit.kvstore.disk.making import MIB, payload_of, record_of
from unit.kvstore.making import NAMESPACE, address, name
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock, assert_no_leases
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.rules import Rules
from weir_kvstore.tiers.disk import SegmentSlots


@asynccontextmanager
async def disk(path: Path, clock: VirtualClock, *, ttl_seconds: float | None = None) -> AsyncIterator[LocalTier]:
    slots = SegmentSlots(path, MIB, clock)
    tier = LocalTier("disk", slots, LeaseLedger(clock), Random(0), Rules(max_blocks=1000, ttl_seconds=ttl_seconds))
    await tier.open()
    yield tier
    await tier.close()
    tier.index.check_integrity()
    assert_no_leases(tier.ledger)


async def put(tier: LocalTier, *numbers: int) -> None:
    for number in numbers:
        assert await tier.put(record_of(number, payload_of(number)), payload_of(number))


async def held(tier: LocalTier, *numbers: int) -> list[int]:
    found = []
    for number in numbers:
        got = await tier.get(address(number))
        if got is not None:
            assert got == (record_of(number, payload_of(number)), payload_of(number))
            found.append(number)
    return found


async def test_another_process_finds_what_this_one_stored(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with disk(tmp_path, clock) as tier:
        await put(tier, 1, 2, 3)
    async with disk(tmp_path, clock) as tier:
        assert await tier.match(NAMESPACE, [name(1), name(2), name(3), name(4)]) == 3
        assert await held(tier, 1, 2, 3, 4) == [1, 2, 3]
        await put(tier, 4)
    async with disk(tmp_path, clock) as tier:
        assert await held(tier, 1, 2, 3, 4) == [1, 2, 3, 4]


async def test_the_oldest_go_first_also_after_a_restart(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with disk(tmp_path, clock) as tier:
        for number in range(100):
            await put(tier, number)
            await clock.advance(1)
    async with disk(tmp_path, clock) as tier:
        await put(tier, *range(100, 200))
        there = await held(tier, *range(200))
        assert there == list(range(200 - len(there), 200))
        assert len(there) > 100


async def test_a_restart_makes_nobody_young_again(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with disk(tmp_path, clock, ttl_seconds=100) as tier:
        await put(tier, 1)
        await clock.advance(60)
        await put(tier, 2)
    await clock.advance(30)
    async with disk(tmp_path, clock, ttl_seconds=100) as tier:
        assert await held(tier, 1, 2) == [1, 2]
        await clock.advance(20)
        assert await held(tier, 1, 2) == [2]


async def test_removed_is_removed_though_it_was_being_read_when_all_ended(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with disk(tmp_path / "killed", clock) as tier:
        await put(tier, 1, 2)
        block = tier.find(address(1))
        assert block is not None
        with tier.pin(block, "a reader"):
            assert await tier.remove([address(1)]) == 1
            shutil.copytree(tmp_path / "killed", tmp_path / "left")  # as kill -9 would leave it
            assert await tier.load(block) == (record_of(1, payload_of(1)), payload_of(1))
    async with disk(tmp_path / "left", clock) as tier:
        assert await held(tier, 1, 2) == [2]


async def test_a_directory_in_use_is_said_and_taken_when_it_is_free(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with disk(tmp_path, clock) as first:
        await put(first, 1)
        second = LocalTier(
            "disk", SegmentSlots(tmp_path, MIB, clock), LeaseLedger(clock), Random(0), Rules(max_blocks=9)
        )
        await second.open()
        assert "in use by another process: give each kvstore a directory of its own" in second.report().fault
        assert await held(second, 1) == []
        assert not await second.put(record_of(2, payload_of(2)), payload_of(2))
        assert await held(first, 1) == [1]
    await clock.advance(60)
    await second.open()
    assert second.report().fault == ""
    assert await held(second, 1) == [1]
    await second.close()
