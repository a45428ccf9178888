"""What the store's tests are made of: bytes that tell blocks apart, and stores that are small enough to overflow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from random import Random
from typing import Any

from fakes.faulty_slots import FaultySlots
from weir_chassis.clock import Clock
from weir_chassis.leases import LeaseLedger
from weir_kvstore.bandwidth import Bandwidth
from weir_kvstore.checksum import checksum
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.mover import Lane
from weir_kvstore.policies.admission import Admission, AdmitAll
from weir_kvstore.put import PutPiece
from weir_kvstore.record import Address, Record
from weir_kvstore.rules import Rules
from weir_kvstore.store import BlockStore, Bounds
from weir_kvstore.tier import Tier
from weir_kvstore.tiers.arena import ArenaSlots

NAMESPACE = b"n" * 16


def name(number: int) -> bytes:
    """A block hash."""
    return number.to_bytes(16, "big")


def address(number: int, namespace: bytes = NAMESPACE) -> Address:
    return Address(namespace, name(number))


def whole(number: int, payload: bytes, *, parent: int | None = None) -> PutPiece:
    """A block in one piece."""
    parent_hash = b"" if parent is None else name(parent)
    return PutPiece(name(number), parent_hash, len(payload), checksum(payload), 0, payload)


def in_pieces(number: int, payload: bytes, piece_bytes: int) -> Iterable[PutPiece]:
    for offset in range(0, len(payload), piece_bytes):
        chunk = payload[offset : offset + piece_bytes]
        yield PutPiece(name(number), b"", len(payload), checksum(payload), offset, chunk)


def record(number: int, size_bytes: int = 10, *, parent: int | None = None, tenant: str = "") -> Record:
    """Of a payload of zeros."""
    parent_hash = b"" if parent is None else name(parent)
    return Record(address(number), parent_hash, size_bytes, checksum(bytes(size_bytes)), tenant)


def make_tier(
    tier: str, ledger: LeaseLedger, *, capacity_bytes: int = 100, max_blocks: int = 100, **rules: Any
) -> LocalTier:
    """In memory, whatever it is called. `spoil` and `error` of its slots make it go wrong."""
    slots = FaultySlots(ArenaSlots(capacity_bytes))
    return LocalTier(tier, slots, ledger, Random(0), Rules(max_blocks, **rules))


async def make_store(
    clock: Clock,
    *,
    capacity_bytes: int = 100,
    max_staged_bytes: int | None = None,
    max_blocks: int = 100,
    max_live_leases: int = 100,
    min_prefix_tokens: int = 0,
    ledger: LeaseLedger | None = None,
    slower: Sequence[Tier] = (),
    admission: Admission | None = None,
    bytes_per_second: float | None = None,
) -> BlockStore:
    """Opened. `slower` is over the same ledger; what goes into it is admitted and bounded as the last two say."""
    ids = count(1)
    slots = ArenaSlots(capacity_bytes)
    rules = Rules(max_blocks, max_staged_bytes=max_staged_bytes or capacity_bytes)
    ram = LocalTier("ram", slots, ledger or LeaseLedger(clock), Random(0), rules)
    lanes = [
        Lane(ram, tier, 1 << position, admission or AdmitAll(), Bandwidth(clock, bytes_per_second))
        for position, tier in enumerate(slower)
    ]
    store = BlockStore(
        ram,
        Bounds(max_live_leases, min_prefix_tokens),
        Random(0),
        new_lease_id=lambda: f"lease-{next(ids)}",
        slower=slower,
        lanes=lanes,
        view=slots.view,
    )
    await store.open()
    return store


def check_integrity(store: BlockStore) -> None:
    """What must hold between any two steps."""
    store.ledger.check_integrity()
    for tier in store.local.values():
        tier.index.check_integrity()
        slots = tier.slots.slots if isinstance(tier.slots, FaultySlots) else tier.slots
        assert isinstance(slots, ArenaSlots)
        slots.check_integrity()
        assert slots.used_bytes == sum(block.size_bytes for block in tier.index.blocks())


def corrupt(store: BlockStore, number: int) -> None:
    """One bit of the stored payload flips, as failing memory would have it."""
    block = store.ram.index.find(address(number))
    slots = store.ram.slots
    assert block is not None
    assert isinstance(slots, ArenaSlots)
    slots._memory.view[slots.offset(block.block_id) + block.size_bytes // 2] ^= 1
