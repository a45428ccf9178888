"""A handoff's blocks, out of the engine's pool, as pieces with their blocks' checksums, in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from xxhash import xxh3_64_intdigest

from weir.executor.v1.executor_pb2 import ReadHandoffResponse
from weir_executor.engine import Engine
from weir_executor.handoff.table import HandoffTable, HeldHandoff

_PIECE_BYTES = 2 << 20  # ReadHandoffResponse's own limit
# Copied out of the pool between two steps: at some GB/s about a millisecond of the step loop's time.
_BATCH_BYTES = 4 << 20
# At once; others wait for their turn. Together they hold two batches each: one that is sent, one on its way to gRPC.
_MAX_READERS = 8


class HandoffReader:
    """Used from one event loop."""

    def __init__(self, engine: Engine, table: HandoffTable) -> None:
        self._engine, self._table = engine, table
        self._batch_blocks = max(1, _BATCH_BYTES // max(1, engine.info.block_bytes))
        self._turns = asyncio.Semaphore(_MAX_READERS)

    async def read(self, handoff_id: str, first_block: int) -> AsyncGenerator[ReadHandoffResponse, None]:
        """From this block on. Ends early when the blocks have gone meanwhile. Raises NotFound."""
        async with self._turns:
            handoff = self._table.find(handoff_id)
            for first in range(first_block, len(handoff.block_hashes), self._batch_blocks):
                payloads = await self._payloads(handoff, first)
                if payloads is None:
                    return
                checksums = await asyncio.to_thread(_checksums, payloads)
                for block_hash, payload, checksum in zip(
                    handoff.block_hashes[first:], payloads, checksums, strict=False
                ):
                    for piece in _pieces(block_hash, payload, checksum):
                        yield piece
                        if handoff.lease.live:
                            handoff.lease.renew(self._table.lease_seconds)

    async def _payloads(self, handoff: HeldHandoff, first: int) -> Sequence[bytes] | None:
        """The next batch, or None: released since, or dropped by an engine that needed the room."""
        if not handoff.lease.live:
            return None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[bytes] | None] = loop.create_future()

        def put(payloads: Sequence[bytes] | None) -> None:
            if not answer.done():  # its reader may have gone
                answer.set_result(payloads)

        def take(payloads: Sequence[bytes] | None) -> None:
            loop.call_soon_threadsafe(put, payloads)

        count = min(self._batch_blocks, len(handoff.block_hashes) - first)
        self._engine.read_held(handoff.key, first, count, take)
        return await answer


def _checksums(payloads: Sequence[bytes]) -> list[int]:
    return [xxh3_64_intdigest(payload) for payload in payloads]


def _pieces(block_hash: bytes, payload: bytes, checksum: int) -> list[ReadHandoffResponse]:
    return [
        ReadHandoffResponse(
            block_hash=block_hash,
            payload_bytes=len(payload),
            offset=offset,
            chunk=payload[offset : offset + _PIECE_BYTES],
            checksum=checksum,
        )
        for offset in range(0, len(payload), _PIECE_BYTES)
    ]
