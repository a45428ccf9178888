"""Pieces of blocks → whole blocks, in the order they were asked for, each as long as the engine's blocks are. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from weir.kvstore.v1.kvstore_pb2 import GetBlocksResponse
from weir_chassis.errors import DataCorrupt


class BlockAssembler:
    """Takes what GetBlocks sends. What it holds is complete, but not verified before `verified` has read it."""

    def __init__(self, wanted: Sequence[bytes], block_bytes: int) -> None:
        """`wanted` are the hashes that should come, in order."""
        self._wanted, self._block_bytes = wanted, block_bytes
        self._whole: list[tuple[bytes | bytearray, int]] = []  # with the checksum each should have
        self._partial = bytearray()

    @property
    def done(self) -> bool:
        return len(self._whole) == len(self._wanted)

    @property
    def received_bytes(self) -> int:
        return len(self._whole) * self._block_bytes + len(self._partial)

    def add(self, piece: GetBlocksResponse) -> None:
        """Raises DataCorrupt for a piece that is not the next one."""
        if self.done or piece.block_hash != self._wanted[len(self._whole)]:
            raise DataCorrupt("the kvstore sent a block that was not next")
        if piece.payload_bytes != self._block_bytes or piece.offset != len(self._partial):
            raise DataCorrupt("the kvstore sent a block of another size, or a piece out of order")
        if not piece.offset and len(piece.chunk) == self._block_bytes:
            self._whole.append((piece.chunk, piece.checksum))
            return
        self._partial += piece.chunk
        if len(self._partial) > self._block_bytes or not piece.chunk:
            raise DataCorrupt("the kvstore sent a piece that is empty or too long")
        if len(self._partial) == self._block_bytes:
            self._whole.append((self._partial, piece.checksum))
            self._partial = bytearray()

    def verified(self) -> list[bytes | memoryview]:
        """The leading blocks whose bytes match their checksums. Reads them all: not for the event loop."""
        sound: list[bytes | memoryview] = []
        for payload, checksum in self._whole:
            if xxh3_64_intdigest(payload) != checksum:
                break
            sound.append(payload if isinstance(payload, bytes) else memoryview(payload).toreadonly())
        return sound
