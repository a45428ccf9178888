"""The contract of tiers, kept by each of them."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from contract import tier_contract
from contract.tier_contract import CAPACITY_BYTES, Check, Make, Place
from fakes.asked_tier import AskedTier
from fakes.failing_files import FailingFiles, spoil
from fakes.faulty_peer import make_store, served
from fakes.faulty_slots import FaultySlots
from servers import redis_server
from unit.kvstore import redis_store as shared_store
from weir_chassis.clock import SystemClock
from weir_chassis.errors import Internal
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock, assert_no_leases
from weir_kvstore.hop import Arrivals
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.record import Address
from weir_kvstore.rules import Rules
from weir_kvstore.tiers.arena import ArenaSlots
from weir_kvstore.tiers.disk import Reads, SegmentSlots
from weir_kvstore.tiers.peer.tier import PeerPlace, PeerTier

# So short that a check of a stopped server need not wait, and long enough for one that runs.
_IMPATIENT_SECONDS = 0.5
_PATIENT_SECONDS = 30.0


@asynccontextmanager
async def ram(*, capacity_bytes: int = CAPACITY_BYTES, ttl_seconds: float | None = None) -> AsyncIterator[Place]:
    clock = VirtualClock()
    slots = FaultySlots(ArenaSlots(capacity_bytes))
    tier = LocalTier("ram", slots, LeaseLedger(clock), Random(0), Rules(max_blocks=1000, ttl_seconds=ttl_seconds))

    async def corrupt(address: Address) -> None:
        slots.spoil(address)

    async def fail(now: bool) -> None:
        slots.error = OSError(errno.EIO, "told to") if now else None

    await tier.open()
    yield Place(tier, corrupt, fail, clock.advance)
    await tier.close()
    tier.index.check_integrity()
    assert_no_leases(tier.ledger)


@asynccontextmanager
async def disk(
    *, capacity_bytes: int = CAPACITY_BYTES, ttl_seconds: float | None = None, reads: Reads = Reads.DIRECT
) -> AsyncIterator[Place]:
    clock = VirtualClock()
    failing = False
    with TemporaryDirectory() as directory:
        files = FailingFiles(lambda *_: failing)
        slots = SegmentSlots(Path(directory), capacity_bytes, clock, reads=reads, files=files)
        tier = LocalTier("disk", slots, LeaseLedger(clock), Random(0), Rules(max_blocks=1000, ttl_seconds=ttl_seconds))

        async def corrupt(address: Address) -> None:
            block = tier.index.find(address)
            assert block is not None
            spoil(Path(directory), slots, block.block_id)

        async def fail(now: bool) -> None:
            nonlocal failing
            failing = now

        await tier.open()
        yield Place(tier, corrupt, fail, clock.advance)
        slots.check_integrity()
        await tier.close()
    tier.index.check_integrity()
    assert_no_leases(tier.ledger)


@asynccontextmanager
async def redis(*, capacity_bytes: int = CAPACITY_BYTES, ttl_seconds: float | None = None) -> AsyncIterator[Place]:
    with redis_server() as server:
        async with shared_store.opened(
            server, seconds=_IMPATIENT_SECONDS, capacity_bytes=capacity_bytes, ttl_seconds=ttl_seconds
        ) as tier:

            async def corrupt(address: Address) -> None:
                shared_store.flip(server, address, -1)

            async def fail(now: bool) -> None:
                server.signal(signal.SIGSTOP if now else signal.SIGCONT)

            yield Place(tier, corrupt, fail, asyncio.sleep)


@asynccontextmanager
async def peer(*, capacity_bytes: int = CAPACITY_BYTES, ttl_seconds: float | None = None) -> AsyncIterator[Place]:
    store = make_store(capacity_bytes=capacity_bytes, ttl_seconds=ttl_seconds)
    async with served(store) as other:
        await store.open()
        # One that fails says so at once, so that no check waits so long, and no busy machine is so slow.
        place = PeerPlace("peer:0", _PATIENT_SECONDS, _PATIENT_SECONDS)
        tier = PeerTier(place, other.connect, Arrivals(), clock=SystemClock(), random=Random(0))

        async def corrupt(address: Address) -> None:
            other.spoilt.add(address.block_hash)

        async def fail(now: bool) -> None:
            other.error = Internal("told to") if now else None

        await tier.open()
        yield Place(tier, corrupt, fail, asyncio.sleep)
        await tier.close()
    assert_no_leases(store.ledger)


@asynccontextmanager
async def asked(*, capacity_bytes: int = CAPACITY_BYTES, ttl_seconds: float | None = None) -> AsyncIterator[Place]:
    """The double of a shared tier is a tier too."""
    async with ram(capacity_bytes=capacity_bytes, ttl_seconds=ttl_seconds) as place:
        assert isinstance(place.tier, LocalTier)
        yield replace(place, tier=AskedTier(place.tier))


TIERS: dict[str, Make] = {
    "ram": ram,
    "disk": disk,
    "disk-buffered": partial(disk, reads=Reads.BUFFERED),
    "redis": redis,
    "peer": peer,
    "asked": asked,
}


@pytest.mark.parametrize("check", tier_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("tier", TIERS)
async def test_contract(tier: str, check: Check) -> None:
    await check(TIERS[tier])
