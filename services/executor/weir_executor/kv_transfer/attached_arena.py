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

from weir_chassis.errors import DataCorrupt
from weir_chassis.mapped_memory import MappedMemory
from weir_executor.kv_transfer.copier import Blocks, Copier
from weir_executor.kv_transfer.private_buffers import PrivateBuffers

# A store's word decides which file is written to, so it must be one that stores make.
_PREFIX: Final = "weir-kvstore-"
# Copies begin where a cache line does, so that whole lines can be stored at once.
_LINE_BYTES: Final = 64


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

    def __init__(self, arena_id: str, path: Path, size_bytes: int, copier: Copier) -> None:
        """Raises OSError where that is not the file of that arena, on another host for instance."""
        self.arena_id, self._copier = arena_id, copier
        self._memory = MappedMemory(_map(path, arena_id, size_bytes))
        self._mapped = bytearray(-(-size_bytes // mmap.PAGESIZE))  # a page: 1, it can be written without the kernel

    def require(self, offset: int, size_bytes: int) -> None:
        """Raises DataCorrupt for what is not within the arena."""
        if not 0 <= offset <= offset + size_bytes <= len(self._memory):
            raise DataCorrupt(f"the kvstore named {size_bytes} bytes at {offset} in an arena of {len(self._memory)}")

    def copy_out(self, places: Sequence[Place], block_bytes: int, buffers: PrivateBuffers) -> Copied:
        """Blocks in memory of our own, each verified as it is copied."""
        stride = -(-block_bytes // _LINE_BYTES) * _LINE_BYTES
        buffer = buffers.take(len(places) * stride)
        blocks = Blocks([place.offset for place in places], [place.checksum for place in places], block_bytes)
        good = self._copier.copy_out(self._memory, blocks, buffer.memory, stride)
        payloads = [buffer.cut(index * stride, block_bytes) for index in range(good)]
        return Copied(payloads, places[good] if good < len(places) else None)

    def copy_in(self, offsets: Sequence[int], payloads: Sequence[bytes]) -> None:
        for offset, payload in zip(offsets, payloads, strict=True):
            self._map_pages(offset, len(payload))
            self._copier.copy_in(self._memory, offset, payload)

    def _map_pages(self, offset: int, size_bytes: int) -> None:
        """All at once, and not one by one as they are written; and once, because asking takes longer than copying.

        Where that cannot be, writing does it.
        """
        first, end = offset // mmap.PAGESIZE, -(-(offset + size_bytes) // mmap.PAGESIZE)
        if self._mapped.find(0, first, end) >= 0 and self._memory.populate(offset, size_bytes):
            self._mapped[first:end] = b"\1" * (end - first)


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
