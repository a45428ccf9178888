"""How long it takes to find and lease a prefix of a thousand blocks: inside the service, and for a caller."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from random import Random
from statistics import median

from bench.kvstore import processes
from bench.kvstore.blocks import MIB, NAMESPACE, make_blocks, put
from bench.report import Figures
from weir_chassis.channel import open_channel
from weir_chassis.clock import SystemClock
from weir_chassis.leases import LeaseLedger
from weir_executor.kv_transfer.arena_transport import ArenaTransport
from weir_executor.kv_transfer.copier import load_copier
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.record import Address, Record
from weir_kvstore.rules import Rules
from weir_kvstore.store import BlockStore, Bounds
from weir_kvstore.tiers.arena import ArenaSlots

_BLOCKS, _OTHERS = 1_000, 50_000  # of the prefix, and of other chains that are held
_SIZE = 64  # bytes: finding a block does not depend on it
_ROUNDS = 400
_WANTED = 200e-6  # seconds


async def measure(scratch: Path) -> Figures:
    inside = await _inside()
    through = await _through_grpc(scratch)
    wanted = f"200 µs / lookup of {_BLOCKS} blocks inside the service"
    return Figures(
        {wanted: _WANTED / inside},
        {wanted: 1.0},
        {
            f"lookup of {_BLOCKS} blocks inside the service, µs": 1e6 * inside,
            f"lookup of {_BLOCKS} blocks through gRPC, µs": 1e6 * through,
        },
    )


async def _inside() -> float:
    ledger, ids = LeaseLedger(SystemClock()), count()
    ram = LocalTier("ram", ArenaSlots(64 * MIB), ledger, Random(0), Rules(2 * _OTHERS))
    store = BlockStore(ram, Bounds(10), Random(0), new_lease_id=lambda: f"lease-{next(ids)}")
    await store.open()
    hashes = [number.to_bytes(16, "big") for number in range(1, _OTHERS + _BLOCKS + 1)]
    for block_hash in hashes:
        assert await ram.put(Record(Address(NAMESPACE, block_hash), b"", _SIZE, 0), bytes(_SIZE))

    async def look() -> str | None:
        match = await store.match(NAMESPACE, hashes[:_BLOCKS], skip_blocks=0, seconds=10, owner="bench")
        assert match.matched_blocks == _BLOCKS
        return match.lease_id

    async def release(lease_id: str) -> None:
        store.leases.release(lease_id)

    seconds = await _median(look, release)
    await store.close()
    return seconds


async def _through_grpc(scratch: Path) -> float:
    async with (
        processes.store(scratch, capacity_bytes=64 * MIB) as address,
        open_channel(address) as channel,
    ):
        transport = ArenaTransport(channel, SystemClock(), load_copier())
        blocks = make_blocks(_BLOCKS * _SIZE, _SIZE)
        await put(transport, blocks)
        hashes = [block.block_hash for block in blocks]

        async def look() -> str | None:
            match = await transport.match(NAMESPACE, hashes, skip_blocks=0, block_size=16, timeout=10)
            assert match.matched_blocks == _BLOCKS
            return match.lease_id

        async def release(lease_id: str) -> None:
            await transport.release(lease_id, timeout=10)

        return await _median(look, release)


async def _median(look: Callable[[], Awaitable[str | None]], release: Callable[[str], Awaitable[None]]) -> float:
    """Seconds that `look` takes; giving back is not counted."""
    taken: list[float] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        lease_id = await look()
        taken.append(time.perf_counter() - began)
        assert lease_id is not None
        await release(lease_id)
    return median(taken)
