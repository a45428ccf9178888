"""The store's RAM tier, seen from this process: its arena, mapped, and copies out of it and into it.

Whoever else maps it can write there, so what is in it proves nothing: bytes count when a copy of them is verified.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from xxhash import xxh3_64, xxh3_64_intdigest

from weir_chassis.errors import DataCorrupt
from weir_chassis.mapped_memory import MappedMemory
from weir_executor.kv_transfer.private_buffers import Buffer, PrivateBuffers

# A store's word decides which file is written to, so it must be one that stores make.
_PREFIX: Final = "weir-kvstore-"
# What has been copied is still in the processor's second cache when it is hashed.
_STRIP_BYTES: Final = 512 * 1024


class Place(NamedTuple):
    """Where a block lies in the arena."""

    block_hash: bytes
    offset: int
    checksum: int  # XXH3-64


@dataclass(frozen=True, slots=True)
class Copied:
    """The leading blocks that verified, and the first that did not."""

    payloads: Sequence[memoryview]
    corrupt: Place | None = None


class AttachedArena:
    """All of this may run on any thread, several at once, without the GIL while bytes move."""

    def __init__(self, arena_id: str, path: Path, size_bytes: int) -> None:
        """Raises OSError where that is not the file of that arena, on another host for instance."""
        self.arena_id = arena_id
        self._memory = MappedMemory(_map(path, arena_id, size_bytes))

    def require(self, offset: int, size_bytes: int) -> None:
        """Raises DataCorrupt for what is not within the arena."""
        if not 0 <= offset <= offset + size_bytes <= len(self._memory):
            raise DataCorrupt(f"the kvstore named {size_bytes} bytes at {offset} in an arena of {len(self._memory)}")

    def copy_out(self, places: Sequence[Place], block_bytes: int, buffers: PrivateBuffers) -> Copied:
        """Blocks in memory of our own, each verified as it is copied."""
        buffer = buffers.take(len(places) * block_bytes)
        payloads: list[memoryview] = []
        for index, place in enumerate(places):
            at = index * block_bytes
            if self._copy_one(place.offset, block_bytes, buffer, at) != place.checksum:
                return Copied(payloads, place)
            payloads.append(buffer.cut(at, block_bytes))
        return Copied(payloads)

    def copy_in(self, offsets: Sequence[int], payloads: Sequence[bytes]) -> None:
        for offset, payload in zip(offsets, payloads, strict=True):
            # Mapped at once, and not page by page as they are written. Where that cannot be, writing does it.
            self._memory.populate(offset, len(payload))
            self._memory.copy_in(offset, payload)

    def _copy_one(self, offset: int, size_bytes: int, buffer: Buffer, at: int) -> int:
        """Copies a block, and returns the checksum of the copy."""
        if size_bytes <= _STRIP_BYTES:
            buffer.memory.copy_from(at, self._memory, offset, size_bytes)
            return int(xxh3_64_intdigest(buffer.cut(at, size_bytes)))
        digest = xxh3_64()
        for start in range(0, size_bytes, _STRIP_BYTES):
            strip_bytes = min(_STRIP_BYTES, size_bytes - start)
            buffer.memory.copy_from(at + start, self._memory, offset + start, strip_bytes)
            digest.update(buffer.cut(at + start, strip_bytes))
        return int(digest.intdigest())


def _map(path: Path, arena_id: str, size_bytes: int) -> mmap.mmap:
    if path.name != f"{_PREFIX}{arena_id}":
        raise OSError(f"{path} is no arena's name")
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size_bytes or found.st_uid != os.geteuid():
            raise OSError(f"{path} is not a file of {size_bytes} bytes of this user's")
        return mmap.mmap(fd, size_bytes)
    finally:
        os.close(fd)
