"""Reading leased blocks by reference: where they lie in the arena, for callers who copy and verify them themselves.

What is not in RAM is brought up there first, and stays as long as the lease does. What RAM has no room for comes by
value, between the others.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Final

from weir_chassis.errors import InvalidArgument
from weir_kvstore.block import Block, State
from weir_kvstore.bounds import MAX_CHUNK_BYTES
from weir_kvstore.leases import Leased
from weir_kvstore.reads import AHEAD_BLOCKS, Found, Piece, find_leased, keep, read_ahead, verified
from weir_kvstore.store import BlockStore

# Some 40 bytes each on the wire: a message far below gRPC's limit, made in a few milliseconds.
_MAX_PLACES: Final = 1024


async def place_lease(
    store: BlockStore, lease_id: str, *, owner: str, max_blocks: int = 0
) -> AsyncGenerator[Sequence[Block] | Piece, None]:
    """Leased blocks in order: those in RAM as many at once as are there, not verified; the others in pieces.

    Ends early at the first that is a miss. Raises NotFound, LeaseExpired, also midway.
    """
    leased = store.leases.blocks(lease_id)[: max_blocks or None]
    ready: list[Block] = []
    for position, each in enumerate(leased):
        block = _in_ram(store, each)
        if block is None or block.state is State.QUARANTINED:  # which another tier may have
            if ready:
                yield ready
                ready = []
            found = await _bring_up(store, lease_id, leased[position : position + AHEAD_BLOCKS], owner)
            if found is None:
                return
            block = found.block
            if block is None:
                for piece in _pieces(found):
                    yield piece
                    store.leases.blocks(lease_id)
                continue
        _note(store, lease_id, each, block)
        ready.append(block)
        if len(ready) == _MAX_PLACES:
            yield ready
            ready = []
            store.leases.blocks(lease_id)  # still ours: it may have ended while the caller was away
    if ready:
        yield ready


def _in_ram(store: BlockStore, leased: Leased) -> Block | None:
    if isinstance(leased, Block) and leased.tier == store.ram.name:
        return leased
    return store.ram.find(leased.address)


async def _bring_up(store: BlockStore, lease_id: str, leased: Sequence[Leased], owner: str) -> Found | None:
    """The first of these; the others are on their way. Raises when the lease has ended meanwhile."""
    read_ahead(store, leased)
    found = await find_leased(store, leased[0], owner=owner)
    store.leases.blocks(lease_id)
    return found


def _note(store: BlockStore, lease_id: str, leased: Leased, block: Block) -> None:
    """The block's place is given away: it stays there as long as the lease lasts."""
    if block is not leased and not store.leases.keeps(lease_id, block):
        keep(store, lease_id, block)
    store.ram.counters.read_bytes += block.size_bytes
    store.saved_seconds += block.record.prefill_seconds


def _pieces(found: Found) -> Iterator[Piece]:
    for offset in range(0, found.record.size_bytes, MAX_CHUNK_BYTES):
        yield Piece(found.record, offset, memoryview(found.payload)[offset : offset + MAX_CHUNK_BYTES])


async def report_corrupt(store: BlockStore, lease_id: str, block_hash: bytes, *, owner: str) -> bool:
    """Looks at the leased block in RAM, and quarantines it if it is wrong. Raises NotFound, LeaseExpired."""
    for leased in store.leases.blocks(lease_id):
        if leased.address.block_hash == block_hash:
            block = _in_ram(store, leased)
            return block is not None and not await verified(store, block, owner)
    raise InvalidArgument("block_hash", "no leased block has it")
