"""What this tier asks of the operating system, in one place: whole reads and writes, or an OSError."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from weir_kvstore.record import Bytes
from weir_kvstore.tiers.disk import direct

# What a file system that has no more to give says; EFBIG is a limit on a file's length.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_KEEP_SIZE_PUNCH_HOLE: Final = 0x01 | 0x02  # linux/falloc.h
# Asking ahead pays from about here: the kernel's own read-ahead, 128 KiB by default, is smaller than our requests.
_ASK_AHEAD_BYTES: Final = 256 * 1024


class Files:
    """Calls that block. Faults are injected here by tests."""

    def open(self, path: Path) -> int:
        """For reading and writing. A file that is made by this is there after a power loss, too."""
        is_new = not path.exists()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if is_new:
            sync_directory(path.parent)
        return fd

    def open_direct(self, path: Path) -> int:
        """For `read_direct`, and nothing else."""
        return os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0) | os.O_CLOEXEC)

    def size_bytes(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def write(self, fd: int, data: Bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written

    def read(self, fd: int, into: Sequence[memoryview], offset: int) -> None:
        """Fills all of `into` from one range of the file. A file that ends before is an OSError (EIO)."""
        left = [view for view in into if view]
        length = sum(map(len, left))
        if length >= _ASK_AHEAD_BYTES:
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)
        while left:
            got = os.preadv(fd, left, offset)
            if not got:
                raise OSError(errno.EIO, "the segment ends before the block does")
            offset += got
            while left and got >= len(left[0]):
                got -= len(left.pop(0))
            if got:
                left[0] = left[0][got:]

    def read_direct(self, fd: int, into: Sequence[memoryview], offset: int) -> None:
        """The same past the page cache. What was written before is seen."""
        direct.read(fd, into, offset)

    def allocate(self, fd: int, offset: int, size_bytes: int) -> None:
        os.posix_fallocate(fd, offset, size_bytes)

    def punch(self, fd: int, offset: int, size_bytes: int) -> None:
        """Gives the range's room back to the file system; it reads as zeros."""
        if _libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, size_bytes):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def replace(self, new: Path, old: Path) -> None:
        """`new`, which is synced, under the other's name, for good."""
        new.rename(old)
        sync_directory(old.parent)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def close(self, fd: int) -> None:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Which names it has is on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
