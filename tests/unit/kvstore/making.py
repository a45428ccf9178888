"""What the store's tests are made of: bytes that tell blocks apart, and stores that are small enough to overflow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from random import Random
from typing import Any

from weir_chassis.clock import Clock
from weir_chassis.leases import LeaseLedger
from weir_kvstore.checksum import checksum
from weir_kvstore.local_tier import LocalTier
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


def make_ram(clock: Clock, *, capacity_bytes: int = 100, max_blocks: int = 100, **rules: Any) -> LocalTier:
    return LocalTier("ram", ArenaSlots(capacity_bytes), LeaseLedger(clock), Random(0), Rules(max_blocks, **rules))


async def make_store(
    clock: Clock,
    *,
    capacity_bytes: int = 100,
    max_staged_bytes: int | None = None,
    max_blocks: int = 100,
    max_live_leases: int = 100,
    min_prefix_tokens: int = 0,
    slower: Sequence[Tier] = (),
) -> BlockStore:
    ids = count(1)
    ram = make_ram(
        clock, capacity_bytes=capacity_bytes, max_blocks=max_blocks, max_staged_bytes=max_staged_bytes or capacity_bytes
    )
    bounds = Bounds(max_live_leases, min_prefix_tokens)
    store = BlockStore(ram, bounds, Random(0), new_lease_id=lambda: f"lease-{next(ids)}", slower=slower)
    await store.open()
    return store


def check_integrity(store: BlockStore) -> None:
    """What must hold between any two steps."""
    store.ledger.check_integrity()
    for tier in store.local.values():
        tier.index.check_integrity()
        slots = tier.slots
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
