"""A handoff's blocks, out of the engine's pool, as pieces with their blocks' checksums, in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from xxhash import xxh3_64_intdigest

from weir.kvstore.v1.block_chunk import BlockChunk, chunks
from weir_executor.engine import Engine
from weir_executor.handoff.table import HandoffTable, HeldHandoff

# Copied out of the pool at once, between two steps where it must be so: at some GB/s about a millisecond.
_BATCH_BYTES = 4 << 20
# At once; others wait for their turn. Together they hold two batches each: one that is sent, one on its way to gRPC.
_MAX_READERS = 8


class HandoffReader:
    """Used from one event loop."""

    def __init__(self, engine: Engine, table: HandoffTable) -> None:
        self._engine, self._table = engine, table
        self._batch_blocks = max(1, _BATCH_BYTES // max(1, engine.info.block_bytes))
        self._turns = asyncio.Semaphore(_MAX_READERS)

    async def read(self, handoff_id: str, first_block: int) -> AsyncGenerator[BlockChunk, None]:
        """From this block on. Ends early when the blocks have gone meanwhile. Raises NotFound."""
        async with self._turns:
            handoff = self._table.find(handoff_id)
            for first in range(first_block, len(handoff.block_hashes), self._batch_blocks):
                # In a thread, because the engine takes its time, and so do the checksums.
                batch = await asyncio.to_thread(self._read, handoff, first) if handoff.lease.live else None
                if batch is None:
                    return  # released since, or dropped by an engine that needed the room
                for piece in batch:
                    yield piece
                    if handoff.lease.live:
                        handoff.lease.renew(self._table.lease_seconds)

    def _read(self, handoff: HeldHandoff, first: int) -> list[BlockChunk] | None:
        """The next batch."""
        hashes = handoff.block_hashes[first : first + self._batch_blocks]
        payloads = self._engine.read_held(handoff.key, first, len(hashes))
        if payloads is None:
            return None
        return [
            piece
            for block_hash, payload in zip(hashes, payloads, strict=True)
            for piece in chunks(payload, block_hash, checksum=xxh3_64_intdigest(payload))
        ]
