"""Pieces of blocks → whole blocks, verified, in the order asked for, each as long as the engine's are. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_64, xxh3_64_intdigest

from weir.kvstore.v1.block_chunk import BlockChunk, Bytes
from weir_chassis.errors import DataCorrupt


class BlockAssembler:
    """Takes what GetBlocks sends.

    A piece is hashed when it comes: it has at most 2 MiB, which is a fifth of a millisecond, less than receiving it.
    """

    def __init__(self, wanted: Sequence[bytes], block_bytes: int) -> None:
        """`wanted` are the hashes that should come, in order."""
        self._wanted, self._block_bytes = wanted, block_bytes
        self._num_whole = 0
        self._partial, self._digest = bytearray(), xxh3_64()

    @property
    def done(self) -> bool:
        return self._num_whole == len(self._wanted)

    def add(self, piece: BlockChunk) -> bytes | memoryview | None:
        """The block that this piece makes whole, if it does.

        Raises DataCorrupt for a piece that is not the next one, and a block that does not match its checksum.
        """
        if self.done or piece.block_hash != self._wanted[self._num_whole]:
            raise DataCorrupt("the kvstore sent a block that was not next")
        if piece.payload_bytes != self._block_bytes or piece.offset != len(self._partial):
            raise DataCorrupt("the kvstore sent a block of another size, or a piece out of order")
        chunk = piece.chunk
        if not piece.offset and len(chunk) == self._block_bytes:
            return self._whole(chunk, xxh3_64_intdigest(chunk), piece.checksum)
        if not chunk or len(self._partial) + len(chunk) > self._block_bytes:
            raise DataCorrupt("the kvstore sent a piece that is empty or too long")
        self._partial += chunk
        self._digest.update(chunk)
        if len(self._partial) < self._block_bytes:
            return None
        payload, digest = self._partial, self._digest.intdigest()
        self._partial, self._digest = bytearray(), xxh3_64()
        return self._whole(payload, digest, piece.checksum)

    def skip(self, block_hashes: Sequence[bytes]) -> None:
        """The next blocks come another way. Raises DataCorrupt where these are not the next ones."""
        end = self._num_whole + len(block_hashes)
        if self._partial or list(block_hashes) != list(self._wanted[self._num_whole : end]):
            raise DataCorrupt("the kvstore sent a block that was not next")
        self._num_whole = end

    def _whole(self, payload: Bytes, digest: int, checksum: int) -> bytes | memoryview:
        if digest != checksum:
            raise DataCorrupt("the kvstore sent a block that does not match its checksum")
        self._num_whole += 1
        return payload if isinstance(payload, bytes) else memoryview(payload).toreadonly()
