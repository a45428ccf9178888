"""Putting blocks in two phases: staged and checked piece by piece, then visible all at once.

    open ──▶ begin ──▶ add, add, … ──▶ commit
      └────────┴────────┴─── anything else that ends it ──▶ every staged byte is freed

A put holds one lease of the ledger. Each message renews it, and the sweep ends a put whose sender has gone quiet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from weir_chassis.drain_rate import DrainRate
from weir_chassis.errors import DeadlineExceeded, InvalidArgument, Overloaded
from weir_chassis.leases import Lease
from weir_kvstore.block import Block
from weir_kvstore.checksum import RunningChecksum
from weir_kvstore.record import Bytes
from weir_kvstore.staging import NoPlace, PutBegin, PutResult, Staging
from weir_kvstore.store import BlockStore

KIND: Final = "put"


@dataclass(frozen=True, slots=True)
class PutPiece:
    """A range of one block, and the whole block's header, which every piece repeats. Sizes are in bounds already."""

    block_hash: bytes
    parent_block_hash: bytes
    payload_bytes: int
    checksum: int
    offset: int
    chunk: Bytes

    def continues(self, first: PutPiece) -> bool:
        return (self.block_hash, self.parent_block_hash, self.payload_bytes, self.checksum) == (
            first.block_hash,
            first.parent_block_hash,
            first.payload_bytes,
            first.checksum,
        )


@dataclass(slots=True)
class _Arriving:
    """The block whose pieces come in now. Without `block` its bytes are let go: it is held already, or has no room."""

    first: PutPiece
    block: Block | None
    received_bytes: int = 0
    checksum: RunningChecksum = field(default_factory=RunningChecksum)


class Put:
    """One put, from its first message to its commit or its end."""

    def __init__(self, store: BlockStore, *, heard: Callable[[], None]) -> None:
        self._store = store
        self._on_heard = heard
        self._staging: Staging | None = None  # None: nothing was begun
        self._arriving: _Arriving | None = None
        self._over = False

    def begin(self, begin: PutBegin) -> None:
        """Raises InvalidArgument for a second beginning."""
        self._heard()
        if self._staging is not None:
            raise InvalidArgument("begin", "only the first message begins a put")
        self._staging = Staging(self._store, begin)

    async def add(self, piece: PutPiece) -> None:
        """The next piece. Raises InvalidArgument for one out of order."""
        self._heard()
        arriving = self._place(piece)
        arriving.received_bytes += len(piece.chunk)
        if arriving.block is not None:
            arriving.checksum.update(piece.chunk)
            await self._store.ram.slots.write(arriving.block.block_id, piece.offset, piece.chunk)
            self._require_open()
        if arriving.received_bytes == piece.payload_bytes:
            self._finish_block()

    def commit(self) -> PutResult:
        """Everything that verified becomes visible in this instant, and the put is over. Raises InvalidArgument."""
        self._heard()
        if self._staging is None:
            raise InvalidArgument("commit", "nothing was begun")
        self._finish_block()
        self._over = True
        return self._staging.publish()

    def end(self) -> None:
        """Frees whatever was not committed. Once is as good as twice."""
        self._over, self._arriving = True, None
        if self._staging is not None:
            self._staging.end()

    def _heard(self) -> None:
        self._require_open()
        self._on_heard()

    def _require_open(self) -> None:
        if self._over:
            raise DeadlineExceeded("the put was ended, for nothing was heard for too long")

    def _place(self, piece: PutPiece) -> _Arriving:
        """The block that this piece belongs to, which it may begin."""
        if self._staging is None:
            raise InvalidArgument("chunk", "the first message must begin the put")
        if piece.offset == 0:
            self._finish_block()
            self._arriving = _start_block(self._staging, piece)
        if self._arriving is None or not piece.continues(self._arriving.first):
            raise InvalidArgument(
                "chunk.offset",
                "a block's pieces come in order, not mixed with others', alike in size, parent and checksum",
            )
        if piece.offset != self._arriving.received_bytes:
            raise InvalidArgument("chunk.offset", f"{piece.offset} where {self._arriving.received_bytes} comes next")
        return self._arriving

    def _finish_block(self) -> None:
        """Keeps the block that was arriving if it is whole and right; frees it at once if it is not."""
        arriving, self._arriving = self._arriving, None
        if arriving is None or arriving.block is None:
            return
        assert self._staging is not None, "a block arrives in a put that was begun"
        whole = arriving.received_bytes == arriving.block.size_bytes
        if whole and arriving.checksum.value == arriving.block.checksum:
            self._staging.keep(arriving.block)
        else:
            self._staging.drop(arriving.block)


def _start_block(staging: Staging, piece: PutPiece) -> _Arriving:
    block = staging.reserve(piece.block_hash, piece.parent_block_hash, piece.payload_bytes, piece.checksum)
    return _Arriving(piece, None if isinstance(block, NoPlace) else block)


class Puts:
    """Opens puts, at most so many at once."""

    def __init__(self, store: BlockStore, *, max_open: int, idle_seconds: float) -> None:
        self._store = store
        self._ledger = store.ledger
        self._max_open = max_open
        self._idle_seconds = idle_seconds
        self._drain_rate = DrainRate(store.ledger.clock)

    def __len__(self) -> int:
        return self._ledger.counts().get(KIND, 0)

    @asynccontextmanager
    async def open(self, owner: str) -> AsyncIterator[Put]:
        """A put that is over when this is left. Raises Overloaded, and DeadlineExceeded when its sender goes quiet."""
        try:
            async with asyncio.timeout(None) as alarm:
                put = Put(self._store, heard=lambda: lease.renew(self._idle_seconds))
                with self.hold(owner, partial(_end, put, alarm)) as lease:
                    yield put
        except TimeoutError:
            raise DeadlineExceeded(f"nothing was heard for {self._idle_seconds:g} s; nothing was stored") from None

    def hold(self, owner: str, on_end: Callable[[], None]) -> Lease:
        """The place of one put, which lapses when it is not renewed. Raises Overloaded when all are taken."""
        if len(self) >= self._max_open:
            raise Overloaded(f"{self._max_open} puts are open", retry_after=self._drain_rate.refuse())
        return self._ledger.acquire(
            KIND, owner, expires_after=self._idle_seconds, on_release=partial(self._ended, on_end)
        )

    def _ended(self, on_end: Callable[[], None]) -> None:
        on_end()
        self._drain_rate.ended(1)


def _end(put: Put, alarm: asyncio.Timeout) -> None:
    """However a put ends. One that lapsed has a task that waits for a message: the alarm wakes it.

    A task that leaves by itself takes the alarm down in the same turn of the loop, before it can ring.
    """
    put.end()
    alarm.reschedule(asyncio.get_running_loop().time())
