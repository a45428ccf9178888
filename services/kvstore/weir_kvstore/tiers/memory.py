"""The memory behind an arena: a file in shared memory that neighbours map, or this process's own.

The file carries the arena's id in its name, so whoever finds it has found this very arena. Its owner holds a lock on it
for life; a file whose lock is free belongs to a process that is gone. The next store to start makes it its own, under
its own name, where it is of the right size: neighbours have it mapped still, and there may not be as much again. Others
it removes. The file never shrinks and keeps every page it has got, so that no reader of it ever meets a hole (which
would be a SIGBUS).
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
from weir_kvstore.tiers import huge_pages
from weir_kvstore.tiers.huge_pages import HugePagesError

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

    def __init__(
        self, mapped: MappedMemory, file: SharedFile | None = None, lock_fd: int | None = None, *, huge: bool = False
    ) -> None:
        """`huge`: of pages that are set aside for this, never swapped, and that pinning would clear all at once."""
        self.file = file
        self._keeps_file = huge
        self.view = mapped.view()
        self._mapped = mapped
        self._lock_fd = lock_fd
        if not huge:
            mapped.pin()

    def populate(self, start: int, size_bytes: int) -> bool:
        """Gives these bytes real memory, so that nobody waits for it later. Any thread; the GIL is released.

        False: there is none; without this question the first writer would be killed.
        """
        return self._mapped.populate(start, size_bytes) or self._allocate(start, size_bytes)

    def close(self) -> None:
        """Nobody finds it from now on. Whoever has it still has it; it is gone with the last of them.

        Huge pages are left where they are, for the next store to take over once this process has ended: neighbours
        that map them still would keep them from it, and nobody else wants them.
        """
        if self.file is not None and not self._keeps_file:
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
    """A file of this size in the directory; private memory, and a line in the log, where that cannot be.

    In a directory of huge pages it is as many of those as it takes, and raises HugePagesError where they cannot be had:
    what was set aside as huge pages is lost to private memory, and there may be no more of that.
    """
    if directory is None:
        return own_memory(size_bytes)
    page_bytes = huge_pages.page_bytes(directory)
    unit = page_bytes or 1
    try:
        return _in_file(directory, arena_id, -(-size_bytes // unit) * unit, huge=page_bytes is not None)
    except OSError as error:
        if page_bytes is not None:
            reason = error.strerror or str(error)
            pool = huge_pages.read_pool(page_bytes)
            raise HugePagesError(huge_pages.refusal(directory, size_bytes, pool, reason)) from error
        get_logger().warning("no_shared_memory", directory=str(directory), bytes=size_bytes, reason=str(error))
        return own_memory(size_bytes)


def _in_file(directory: Path, arena_id: str, size_bytes: int, *, huge: bool) -> ArenaMemory:
    """Raises OSError."""
    path = directory / f"{_PREFIX}{arena_id}"
    fd = _take_over(directory, path, size_bytes)
    if fd is None:
        fd = _new_file(path)
    try:
        _require_room(directory, size_bytes - os.fstat(fd).st_blocks * 512)
        os.ftruncate(fd, size_bytes)
        mapped = MappedMemory(mmap.mmap(fd, size_bytes))
        return ArenaMemory(mapped, SharedFile(arena_id, path, size_bytes), fd, huge=huge)
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            path.unlink()
        raise


def _take_over(directory: Path, path: Path, size_bytes: int) -> int | None:
    """The file of a store that died without a word, as `path` from now on; those that do not fit are removed.

    What neighbours still read there fails its checksum, and what they still write is found out like any wrong byte.
    Raises OSError without the directory.
    """
    taken = None
    for name in os.listdir(directory):
        if not name.startswith(_PREFIX) or (fd := _lock_orphan(directory / name)) is None:
            continue
        found = os.fstat(fd)
        fits = taken is None and found.st_size == size_bytes and found.st_uid == os.geteuid()
        try:
            if fits:
                (directory / name).rename(path)
                taken = fd
            else:
                (directory / name).unlink()
        except OSError:  # another store was faster
            pass
        if taken != fd:
            os.close(fd)
    return taken


def _lock_orphan(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # another user's, or gone by now
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its owner lives
        os.close(fd)
        return None
    return fd


def _require_room(directory: Path, size_bytes: int) -> None:
    """Raises OSError where the file system is too small: containers have 64 MiB unless they are given more."""
    found = os.statvfs(directory)
    free_bytes = found.f_bavail * found.f_frsize
    if found.f_blocks and free_bytes < size_bytes:
        raise OSError(f"{free_bytes} bytes are free")


def _new_file(path: Path) -> int:
    """Empty, and locked."""
    for _ in range(_ATTEMPTS):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                path.unlink()
            raise
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)
    raise OSError("other stores removed the file as often as it was made")
