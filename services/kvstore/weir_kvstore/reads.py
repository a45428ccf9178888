"""Reading leased blocks back, piece by piece, nothing before it is verified.

A block that is not in RAM is brought up there, where there is room, and is sent from the buffer in which it was
verified. While one is sent, the next ones are on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from weir_kvstore.block import Block, State
from weir_kvstore.bounds import MAX_CHUNK_BYTES
from weir_kvstore.checksum import matches
from weir_kvstore.leases import Leased
from weir_kvstore.promotions import Fetching
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.store import BlockStore

# On their way up while one is sent: enough to hide a disk's latency, and what one reader may hold in buffers.
AHEAD_BLOCKS: Final = 8
_AHEAD_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a block. `chunk` is lent: it is to be used up before the next piece is asked for."""

    record: Record
    offset: int
    chunk: Bytes


@dataclass(frozen=True, slots=True)
class Found:
    """A verified block: where it lies in RAM, if it does, and its bytes, if it had to be brought up."""

    record: Record
    block: Block | None = None
    payload: Bytes = b""


async def read_lease(
    store: BlockStore, lease_id: str, *, owner: str, max_blocks: int = 0
) -> AsyncGenerator[Piece, None]:
    """Leased blocks in order; ends early at the first that is a miss. Raises NotFound, LeaseExpired, also midway.

    `max_blocks` 0: all. Between two pieces it holds nothing in RAM but what its lease holds, so that a reader who
    stalls keeps no memory there past its lease.
    """
    leased = store.leases.blocks(lease_id)[: max_blocks or None]
    ahead: dict[Address, Fetching] = {}
    for position, each in enumerate(leased):
        store.leases.blocks(lease_id)  # still ours: it may have ended while the caller was away
        ahead |= read_ahead(store, leased[position : position + AHEAD_BLOCKS], ahead)
        found = await find_leased(store, each, owner=owner, fetching=ahead.pop(each.address, None))
        if found is None:
            return
        with _kept(store, lease_id, each, found):
            for offset in range(0, found.record.size_bytes, MAX_CHUNK_BYTES):
                store.leases.blocks(lease_id)
                if not found.payload and found.block is not None and found.block.state is State.QUARANTINED:
                    return  # another reader found it wrong
                yield Piece(found.record, offset, await _chunk(store, found, offset))
        store.saved_seconds += found.record.prefill_seconds


async def find_leased(
    store: BlockStore, leased: Leased, *, owner: str, fetching: Fetching | None = None
) -> Found | None:
    """The block, from RAM if it is there or can be brought there; None: it is a miss. `fetching`: as it was begun.

    The caller takes its own reference to `block` before it next waits.
    """
    if isinstance(leased, Block) and leased.tier == store.ram.name:
        block: Block | None = leased
    else:
        block = store.ram.find(leased.address)
    if block is not None and await verified(store, block, owner):
        return Found(block.record, block)
    if len(store.tiers) == 1:
        return None
    fetched = await asyncio.shield(fetching or store.promotions.start(leased))
    if fetched is None:
        return None
    block = fetched.block if fetched.block is not None and fetched.block.state is State.VISIBLE else None
    return Found(fetched.record, block, fetched.payload)


@contextmanager
def _kept(store: BlockStore, lease_id: str, leased: Leased, found: Found) -> Iterator[None]:
    """What is read from RAM stays there until this is left, or the lease ends. Raises NotFound, LeaseExpired."""
    store.leases.blocks(lease_id)
    if found.block is None or found.block is leased or found.payload:
        yield
        return
    keep(store, lease_id, found.block)
    try:
        yield
    finally:
        store.leases.let_go(lease_id, found.block)


def keep(store: BlockStore, lease_id: str, block: Block) -> None:
    """The block in RAM stays there as long as the lease lasts, which does."""
    store.ram.refer([block])
    store.leases.keep(lease_id, block)


def read_ahead(
    store: BlockStore, leased: Sequence[Leased], begun: Mapping[Address, Fetching] | None = None
) -> dict[Address, Fetching]:
    """Begins to bring up those that are not in RAM and not begun, up to a bound."""
    size_bytes, fetching = 0, {}
    for each in leased:
        if each.tier == store.ram.name or store.ram.find(each.address) is not None:
            continue
        size_bytes += each.size_bytes
        if size_bytes > _AHEAD_BYTES:
            break
        if not begun or each.address not in begun:
            fetching[each.address] = store.promotions.start(each)
    return fetching


async def _chunk(store: BlockStore, found: Found, offset: int) -> Bytes:
    size_bytes = min(MAX_CHUNK_BYTES, found.record.size_bytes - offset)
    if found.block is None or found.payload:
        return memoryview(found.payload)[offset : offset + size_bytes]
    store.ram.counters.read_bytes += size_bytes
    return await store.ram.slots.read(found.block.block_id, offset, size_bytes)


async def verified(store: BlockStore, block: Block, owner: str) -> bool:
    """Whether the block's bytes in RAM are right. If they are not, nobody will see it again."""
    if block.state is State.QUARANTINED or not store.ram.index.holds(block):  # gone: its lease has ended
        store.ram.counters.misses += 1
        return False
    with store.ram.pin(block, owner):
        payload = await store.ram.slots.read(block.block_id, 0, block.size_bytes)
        if await matches(payload, block.checksum):
            return True
        store.ram.counters.misses += 1
        store.ram.quarantine(block)
        return False
