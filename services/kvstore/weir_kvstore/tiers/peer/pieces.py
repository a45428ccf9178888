"""Pieces of leased blocks → whole blocks, in order. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from weir.kvstore.v1.block_chunk import BlockChunk
from weir_chassis.errors import DataCorrupt
from weir_kvstore.record import Bytes, Record


class Pieces:
    """Takes what GetBlocks sends for these records. What comes out is as long as it should be, and not verified."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._whole: list[Bytes] = []
        self._partial = bytearray()

    @property
    def done(self) -> bool:
        return len(self._whole) == len(self._records)

    def add(self, piece: BlockChunk) -> None:
        """Raises DataCorrupt for a piece that is not the next one."""
        if self.done:
            raise DataCorrupt("the peer sent more blocks than are leased")
        record = self._records[len(self._whole)]
        if piece.block_hash != record.address.block_hash or piece.payload_bytes != record.size_bytes:
            raise DataCorrupt("the peer sent a block that was not next, or of another size")
        if piece.offset != len(self._partial) or piece.offset + len(piece.chunk) > record.size_bytes:
            raise DataCorrupt("the peer sent a piece out of order, or too long a one")
        if len(piece.chunk) == record.size_bytes:
            self._whole.append(piece.chunk)
            return
        self._partial += piece.chunk
        if len(self._partial) == record.size_bytes:
            self._whole.append(self._partial)
            self._partial = bytearray()

    def blocks(self) -> list[tuple[Record, Bytes]]:
        """Those that came whole."""
        return list(zip(self._records, self._whole, strict=False))
