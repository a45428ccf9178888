"""A disk that loses its power: of what was not synced, any sectors may be there afterwards, and the others not.

Writes reach the file at once, as they do a kernel's cache. When the power goes, each file is what it was when it was
synced last, with a random choice of all that was done to it since, in sectors of 512 bytes; names that were removed
come back where their directory was not synced.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, TypeAlias

from weir_kvstore.record import Bytes
from weir_kvstore.tiers.disk.files import Files

SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class _Write:
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Resize:
    size_bytes: int
    shrinks: bool


_Done: TypeAlias = _Write | _Resize


@dataclass(eq=False)
class _File:
    synced: bytearray  # what the disk has for certain
    since: list[_Done] = field(default_factory=list)


class PowerLoss(Files):
    """Files whose power goes with the call of this number, and stays away: OSError, and nothing is done any more."""

    def __init__(self, directory: Path, *, off_after_calls: int) -> None:
        self._left = off_after_calls
        self._lock = threading.Lock()
        self._by_name = {path: _File(bytearray(path.read_bytes())) for path in directory.iterdir()}
        self._by_fd: dict[int, _File] = {}
        self._removed: dict[Path, _File] = {}  # whose directory was not synced since

    @property
    def off(self) -> bool:
        return self._left <= 0

    def restore(self, random: Random) -> None:
        """The power is back: what the disk has is what the files hold."""
        assert self.off
        for path, file in {
            **self._by_name,
            **{p: f for p, f in self._removed.items() if random.random() < 0.5},
        }.items():
            path.write_bytes(_kept(file, random))

    def open(self, path: Path) -> int:
        with self._lock:
            self._call()
            if path not in self._by_name:
                self._by_name[path] = _File(bytearray())
                self._removed.clear()  # as the directory is synced
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._by_fd[fd] = self._by_name[path]
            return fd

    def write(self, fd: int, data: Bytes, offset: int) -> None:
        with self._lock:
            self._call()
            self._by_fd[fd].since.append(_Write(offset, bytes(data)))
            super().write(fd, data, offset)

    def allocate(self, fd: int, offset: int, size_bytes: int) -> None:
        with self._lock:
            self._call()
            self._by_fd[fd].since.append(_Resize(offset + size_bytes, shrinks=False))
            super().allocate(fd, offset, size_bytes)

    def punch(self, fd: int, offset: int, size_bytes: int) -> None:
        with self._lock:
            self._call()
            self._by_fd[fd].since.append(_Write(offset, bytes(size_bytes)))
            super().punch(fd, offset, size_bytes)

    def truncate(self, fd: int, size_bytes: int) -> None:
        with self._lock:
            self._call()
            self._by_fd[fd].since.append(_Resize(size_bytes, shrinks=size_bytes < self.size_bytes(fd)))
            super().truncate(fd, size_bytes)

    def sync(self, fd: int) -> None:
        with self._lock:
            self._call()
            self._by_fd[fd].synced = bytearray(os.pread(fd, self.size_bytes(fd), 0))
            self._by_fd[fd].since.clear()

    def replace(self, new: Path, old: Path) -> None:
        with self._lock:
            self._call()
            self._by_name[old] = self._by_name.pop(new)
            self._removed.clear()
            new.rename(old)

    def remove(self, path: Path) -> None:
        with self._lock:
            self._call()
            if path in self._by_name:
                self._removed[path] = self._by_name.pop(path)
            super().remove(path)

    def _call(self) -> None:
        self._left -= 1
        if self.off:
            raise OSError(errno.EIO, "the power is off")


def _kept(file: _File, random: Random) -> bytes:
    """Sometimes nothing of what was not synced, sometimes all, mostly some."""
    kept, share = file.synced, random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    for done in file.since:
        if isinstance(done, _Write):
            for start in range(0, len(done.data), SECTOR_BYTES):
                if random.random() < share:
                    _put(kept, done.offset + start, done.data[start : start + SECTOR_BYTES])
        elif random.random() < share:
            if done.shrinks:
                del kept[done.size_bytes :]
            else:
                kept.extend(bytes(max(0, done.size_bytes - len(kept))))
    return bytes(kept)


def _put(image: bytearray, offset: int, data: bytes) -> None:
    image.extend(bytes(max(0, offset + len(data) - len(image))))
    image[offset : offset + len(data)] = data
