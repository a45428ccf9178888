"""The contract of slots, kept by each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from contract import slots_contract
from contract.slots_contract import CAPACITY_BYTES, Check, Make, Room
from fakes.faulty_slots import FaultySlots
from weir_chassis.testing import VirtualClock
from weir_kvstore.tiers.arena import ArenaSlots
from weir_kvstore.tiers.disk import Reads, SegmentSlots


@asynccontextmanager
async def ram(*, capacity_bytes: int = CAPACITY_BYTES) -> AsyncIterator[Room]:
    slots = ArenaSlots(capacity_bytes)
    yield Room(slots, reopen=None)
    slots.check_integrity()
    await slots.close()


@asynccontextmanager
async def faultless(*, capacity_bytes: int = CAPACITY_BYTES) -> AsyncIterator[Room]:
    """The double that fails on demand adds nothing where it is asked for nothing."""
    yield Room(FaultySlots(ArenaSlots(capacity_bytes)), reopen=None)


@asynccontextmanager
async def disk(*, capacity_bytes: int = CAPACITY_BYTES, reads: Reads = Reads.DIRECT) -> AsyncIterator[Room]:
    with TemporaryDirectory() as directory:
        opened: list[SegmentSlots] = []

        async def reopen() -> SegmentSlots:
            for slots in opened:
                slots.check_integrity()
                await slots.close()
            opened[:] = [SegmentSlots(Path(directory), capacity_bytes, VirtualClock(), reads=reads)]
            return opened[0]

        slots = await reopen()
        assert await slots.recover() == []
        yield Room(slots, reopen)
        opened[0].check_integrity()
        await opened[0].close()


SLOTS: dict[str, Make] = {
    "ram": ram,
    "disk": disk,
    "disk-buffered": partial(disk, reads=Reads.BUFFERED),
    "faultless": faultless,
}


@pytest.mark.parametrize("check", slots_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("slots", SLOTS)
async def test_contract(slots: str, check: Check) -> None:
    await check(SLOTS[slots])
