"""The memory behind an arena: a file in shared memory that neighbours map, or this process's own.

The file carries the arena's id in its name, so whoever finds it has found this very arena. Its owner holds a lock on it
for life; a file whose lock is free belongs to a process that is gone, and the next store to start removes it. It never
shrinks and keeps every page it has got, so that no reader of it ever meets a hole (which would be a SIGBUS).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from weir_chassis.telemetry import get_logger

_PREFIX: Final = "weir-kvstore-"
# Between making a file and locking it another store may take it for an orphan, once in a blue moon.
_ATTEMPTS: Final = 8
# mmap(2), madvise(2), mlock2(2); Python's mmap module knows none of them.
_MAP_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0
_MADV_POPULATE_WRITE: Final = 23
_MLOCK_ONFAULT: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class SharedFile:
    """Where others find the memory."""

    arena_id: str
    path: Path
    size_bytes: int


@dataclass(slots=True, eq=False)
class Memory:
    """A range of bytes that stays where it is."""

    mapping: mmap.mmap
    file: SharedFile | None = None
    _fd: int | None = None  # holds the lock
    view: memoryview = field(init=False)
    _address: int = field(init=False)

    def __post_init__(self) -> None:
        self.view = memoryview(self.mapping)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))
        with suppress(OSError, AttributeError):  # a kernel without them, or no Linux
            self.mapping.madvise(mmap.MADV_HUGEPAGE)
        # Never swapped out, as far as this process may say so. Only what is touched counts.
        with suppress(AttributeError):
            _LIBC.mlock2(ctypes.c_void_p(self._address), ctypes.c_size_t(len(self.mapping)), _MLOCK_ONFAULT)

    def populate(self, start: int, size_bytes: int) -> bool:
        """Gives these bytes real memory, so that nobody waits for it later. Any thread; the GIL is released.

        False: there is none; without this question the first writer would be killed.
        """
        if size_bytes <= 0:
            return True
        first = start - start % mmap.PAGESIZE
        length = start + size_bytes - first
        if _LIBC.madvise(ctypes.c_void_p(self._address + first), ctypes.c_size_t(length), _MADV_POPULATE_WRITE) == 0:
            return True
        return self._allocate(first, length)

    def close(self) -> None:
        """Nobody finds it from now on. Whoever has it still has it; it is gone with the last of them."""
        if self.file is not None:
            with suppress(OSError):
                self.file.path.unlink()
        if self._fd is not None:
            os.close(self._fd)
        self.file, self._fd = None, None

    def _allocate(self, start: int, length: int) -> bool:
        """The same by an older way: memory for the file, though it is not mapped yet."""
        if self._fd is None:
            return True  # the kernel promises private memory when it is mapped
        try:
            os.posix_fallocate(self._fd, start, length)
        except OSError:
            return False
        return True


def private_memory(size_bytes: int) -> Memory:
    """Nobody else's."""
    return Memory(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE))


def shared_memory(directory: Path | None, arena_id: str, size_bytes: int) -> Memory:
    """A file of this size in the directory; private memory, and a line in the log, where that cannot be."""
    if directory is None:
        return private_memory(size_bytes)
    try:
        remove_orphans(directory)
        _require_room(directory, size_bytes)
        return _map_new_file(directory / f"{_PREFIX}{arena_id}", arena_id, size_bytes)
    except OSError as error:
        get_logger().warning("no_shared_memory", directory=str(directory), bytes=size_bytes, reason=str(error))
        return private_memory(size_bytes)


def remove_orphans(directory: Path) -> int:
    """Removes the files of stores that have died without a word; how many. Raises OSError without the directory."""
    removed = 0
    for name in os.listdir(directory):
        if name.startswith(_PREFIX):
            removed += _remove_if_orphan(directory / name)
    return removed


def _remove_if_orphan(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # another user's, or gone by now
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:  # its owner lives
        return False
    finally:
        os.close(fd)
    return True


def _require_room(directory: Path, size_bytes: int) -> None:
    """Raises OSError where the file system is too small: containers have 64 MiB unless they are given more."""
    found = os.statvfs(directory)
    free_bytes = found.f_bavail * found.f_frsize
    if found.f_blocks and free_bytes < size_bytes:
        raise OSError(f"{free_bytes} bytes are free")


def _map_new_file(path: Path, arena_id: str, size_bytes: int) -> Memory:
    for _ in range(_ATTEMPTS):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                os.ftruncate(fd, size_bytes)
                return Memory(mmap.mmap(fd, size_bytes), SharedFile(arena_id, path, size_bytes), fd)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                path.unlink()
            raise
        os.close(fd)
    raise OSError("other stores removed the file as often as it was made")
