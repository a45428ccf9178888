"""Reading leased blocks back, piece by piece, nothing before it is verified."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from weir_chassis.telemetry import get_logger
from weir_kvstore.bounds import MAX_CHUNK_BYTES
from weir_kvstore.checksum import matches
from weir_kvstore.index import Block, State
from weir_kvstore.record import Bytes
from weir_kvstore.store import BlockStore

PIN: Final = "pin"


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a block. `chunk` is lent: it is to be used up before the next piece is asked for."""

    block: Block
    offset: int
    chunk: Bytes


async def read_lease(store: BlockStore, lease_id: str, *, owner: str) -> AsyncGenerator[Piece, None]:
    """Leased blocks in order; ends early at the first that does not verify. Raises NotFound, LeaseExpired, also midway.

    Between two pieces it holds nothing but the lease, so that a reader who stalls keeps no memory past its lease.
    """
    for block in store.leases.blocks(lease_id):
        if not await _verified(store, block, owner):
            return
        for offset in range(0, block.size_bytes, MAX_CHUNK_BYTES):
            store.leases.blocks(lease_id)  # still ours: it may have ended while the caller was away
            if block.state is State.QUARANTINED:  # another reader found it wrong since
                return
            size_bytes = min(MAX_CHUNK_BYTES, block.size_bytes - offset)
            yield Piece(block, offset, await store.slots.read(block.block_id, offset, size_bytes))


async def _verified(store: BlockStore, block: Block, owner: str) -> bool:
    """Whether the block's bytes are right. If they are not, nobody will see it again."""
    if block.state is State.QUARANTINED:
        store.counters.misses += 1
        return False
    with _pinned(store, block, owner):
        payload = await store.slots.read(block.block_id, 0, block.size_bytes)
        if await matches(payload, block.checksum):
            return True
        _quarantine(store, block)
        return False


def _quarantine(store: BlockStore, block: Block) -> None:
    store.counters.misses += 1
    if block.state is State.QUARANTINED:  # by another reader, while this one was hashing
        return
    store.counters.corrupt += 1
    store.hide(block, State.QUARANTINED)
    get_logger().error("block_quarantined", tier=block.tier, size_bytes=block.size_bytes)


@contextmanager
def _pinned(store: BlockStore, block: Block, owner: str) -> Iterator[None]:
    """The lease may end while a thread hashes; the block's memory must not be freed under it."""
    store.index.refer([block])
    with store.ledger.acquire(PIN, owner, on_release=lambda: store.release([block])):
        yield
