"""The power goes at any call, and any of what was not synced is lost: blocks are found or missing, and none is wrong.

Every directory goes through it several times over, so that what one loss leaves behind meets the next.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from fakes.power_loss import PowerLoss
from unit.kvstore.disk.crashing import CAPACITY_BYTES, size_of
from unit.kvstore.disk.making import payload_of, record_of
from unit.kvstore.making import address
from weir_chassis.clock import SystemClock
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import assert_no_leases
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.rules import Rules
from weir_kvstore.tiers.disk import Fsync, SegmentSlots

LOSSES = 6


@dataclass
class Promised:
    """What was said to whoever put and removed, by block number."""

    committed: set[int] = field(default_factory=set)
    asked_away: set[int] = field(default_factory=set)  # free was called
    away: set[int] = field(default_factory=set)  # and settle has returned since


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("fsync", Fsync)
async def test_blocks_are_found_or_missing_and_none_is_wrong(tmp_path: Path, fsync: Fsync, seed: int) -> None:
    random, held, num_found = Random(f"{fsync} {seed}"), set[int](), 0
    for loss in range(LOSSES):
        files = PowerLoss(tmp_path, off_after_calls=random.randint(1, 250))
        promised = Promised(committed=set(held))
        with suppress(OSError):
            await _work_until_it_goes(tmp_path, files, fsync, random, promised, first=1000 * (loss + 1))
        files.restore(random)
        found = await _found(tmp_path, fsync)
        num_found += len(found)
        if fsync is Fsync.COMMIT_BATCH:
            assert found >= promised.committed - promised.asked_away, "a commit that had returned is kept"
            assert not found & promised.away, "what was removed for good does not come back"
        held = found
    assert num_found or fsync is Fsync.NONE


async def _work_until_it_goes(
    path: Path, files: PowerLoss, fsync: Fsync, random: Random, promised: Promised, *, first: int
) -> None:
    slots = SegmentSlots(path, CAPACITY_BYTES, SystemClock(), fsync=fsync, files=files)
    try:
        recovered = await slots.recover()
        held = {one.block_id: int.from_bytes(one.record.address.block_hash, "big") for one in recovered}
        # Opening lets go of what it found to be damaged or double; of that nobody was promised anything any more.
        promised.committed &= set(held.values())
        workers = [_work(slots, random, held, promised, range(first + worker, first + 1000, 3)) for worker in range(3)]
        await asyncio.gather(*workers, return_exceptions=True)
        assert files.off
    finally:
        await slots.close()


async def _work(slots: SegmentSlots, random: Random, held: dict[int, int], promised: Promised, numbers: range) -> None:
    for number in numbers:
        block_id = 10**6 + number
        while not slots.claim(block_id, size_of(number)):
            await _free_one(slots, random, held, promised)
        payload = payload_of(number, size_of(number))
        await slots.write(block_id, 0, payload)
        await slots.commit(block_id, record_of(number, payload))
        promised.committed.add(number)
        held[block_id] = number


async def _free_one(slots: SegmentSlots, random: Random, held: dict[int, int], promised: Promised) -> None:
    if not held:
        await asyncio.sleep(0)
        return
    victim = random.choice(sorted(held))
    number = held.pop(victim)
    promised.asked_away.add(number)
    slots.free(victim)
    if random.random() < 0.3:
        await slots.settle()
        promised.away.add(number)


async def _found(path: Path, fsync: Fsync) -> set[int]:
    """Whatever the next process serves, each block of it compared with what was put."""
    ledger = LeaseLedger(SystemClock())
    slots = SegmentSlots(path, CAPACITY_BYTES, SystemClock(), fsync=fsync)
    tier = LocalTier("disk", slots, ledger, Random(0), Rules(max_blocks=1000))
    await tier.open()
    assert tier.report().fault == ""
    numbers = [int.from_bytes(block.address.block_hash, "big") for block in tier.index.visible()]
    served = set()
    for number in numbers:
        got = await tier.get(address(number))
        if got is not None:
            payload = payload_of(number, size_of(number))
            assert got == (record_of(number, payload), payload)
            served.add(number)
    assert tier.counters.corrupt == len(numbers) - len(served), "what is missing was found out, and nothing else"
    slots.check_integrity()
    await tier.close()
    assert_no_leases(ledger)
    return served
