"""What the store's tests are made of: bytes that tell blocks apart, and stores that are small enough to overflow."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from weir_chassis.clock import Clock
from weir_chassis.leases import LeaseLedger
from weir_kvstore.checksum import checksum
from weir_kvstore.index import Index
from weir_kvstore.put import PutPiece
from weir_kvstore.record import Address
from weir_kvstore.store import BlockStore, Bounds
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


def make_store(
    clock: Clock,
    *,
    capacity_bytes: int = 100,
    max_staged_bytes: int | None = None,
    max_blocks: int = 100,
    max_live_leases: int = 100,
) -> BlockStore:
    ids = count(1)
    bounds = Bounds(max_blocks, max_staged_bytes or capacity_bytes, max_live_leases)
    return BlockStore(ArenaSlots(capacity_bytes), LeaseLedger(clock), bounds, new_lease_id=lambda: f"lease-{next(ids)}")


def check_integrity(store: BlockStore) -> None:
    """What must hold between any two steps."""
    tier = store.slots
    assert isinstance(tier, ArenaSlots)
    tier.check_integrity()
    store.index.check_integrity()
    store.ledger.check_integrity()
    records: Index = store.index
    assert tier.used_bytes == sum(block.size_bytes for block in records.blocks())


def corrupt(store: BlockStore, number: int) -> None:
    """One bit of the stored payload flips, as failing memory would have it."""
    block = store.index.find(address(number))
    tier = store.slots
    assert block is not None
    assert isinstance(tier, ArenaSlots)
    at = tier.offset(block.block_id) + block.size_bytes // 2
    tier._memory.view[at] ^= 1
