"""The memory behind an arena: a file in shared memory that neighbours map, or this process's own.

The file carries the arena's id in its name, so whoever finds it has found this very arena. Its owner holds a lock on it
for life; a file whose lock is free belongs to a process that is gone, and the next store to start removes it. It never
shrinks and keeps every page it has got, so that no reader of it ever meets a hole (which would be a SIGBUS).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weir_chassis.mapped_memory import MappedMemory, private_memory
from weir_chassis.telemetry import get_logger

_PREFIX: Final = "weir-kvstore-"
# Between making a file and locking it another store may take it for an orphan, once in a blue moon.
_ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class SharedFile:
    """Where others find the memory."""

    arena_id: str
    path: Path
    size_bytes: int


class ArenaMemory:
    """The bytes, and where neighbours find them, if they do."""

    def __init__(self, mapped: MappedMemory, file: SharedFile | None = None, lock_fd: int | None = None) -> None:
        self.file = file
        self.view = mapped.view()
        self._mapped = mapped
        self._lock_fd = lock_fd
        mapped.pin()

    def populate(self, start: int, size_bytes: int) -> bool:
        """Gives these bytes real memory, so that nobody waits for it later. Any thread; the GIL is released.

        False: there is none; without this question the first writer would be killed.
        """
        return self._mapped.populate(start, size_bytes) or self._allocate(start, size_bytes)

    def close(self) -> None:
        """Nobody finds it from now on. Whoever has it still has it; it is gone with the last of them."""
        if self.file is not None:
            with suppress(OSError):
                self.file.path.unlink()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
        self.file, self._lock_fd = None, None

    def _allocate(self, start: int, length: int) -> bool:
        """The same by an older way: memory for the file, though it is not mapped yet."""
        if self._lock_fd is None:
            return True  # the kernel promises private memory when it is mapped
        try:
            os.posix_fallocate(self._lock_fd, start, length)
        except OSError:
            return False
        return True


def own_memory(size_bytes: int) -> ArenaMemory:
    """This process's, and nobody else's."""
    return ArenaMemory(private_memory(size_bytes))


def shared_memory(directory: Path | None, arena_id: str, size_bytes: int) -> ArenaMemory:
    """A file of this size in the directory; private memory, and a line in the log, where that cannot be."""
    if directory is None:
        return own_memory(size_bytes)
    try:
        remove_orphans(directory)
        _require_room(directory, size_bytes)
        return _map_new_file(directory / f"{_PREFIX}{arena_id}", arena_id, size_bytes)
    except OSError as error:
        get_logger().warning("no_shared_memory", directory=str(directory), bytes=size_bytes, reason=str(error))
        return own_memory(size_bytes)


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


def _map_new_file(path: Path, arena_id: str, size_bytes: int) -> ArenaMemory:
    for _ in range(_ATTEMPTS):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                os.ftruncate(fd, size_bytes)
                return ArenaMemory(MappedMemory(mmap.mmap(fd, size_bytes)), SharedFile(arena_id, path, size_bytes), fd)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                path.unlink()
            raise
        os.close(fd)
    raise OSError("other stores removed the file as often as it was made")
