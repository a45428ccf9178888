"""The tier's directory: one process at a time, one version of the format, and which files are in it.

FORMAT               the version; locked while a process has the directory open
index.log            which slots are committed (log.py)
segment-65536        the slots of 65536 bytes (geometry.py)
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from pathlib import Path
from typing import Final

from weir_kvstore.tiers.disk.files import sync_directory
from weir_kvstore.tiers.disk.geometry import PAGE_BYTES

VERSION: Final = 1
_FORMAT: Final = "FORMAT"
_TEXT: Final = f"weir kvstore disk tier, version {VERSION}\n"
_SEGMENT: Final = re.compile(r"segment-([1-9][0-9]{0,15})\Z")


class DirectoryRefusedError(OSError):
    """The directory is somebody else's, or in another format. The message says what to do."""


class Directory:
    """Held from its making until `close`. Raises DirectoryRefusedError, OSError."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._fd = self._lock()
        try:
            self._require_format()
        except BaseException:
            self.close()
            raise

    @property
    def format_path(self) -> Path:
        return self.path / _FORMAT

    @property
    def log_path(self) -> Path:
        return self.path / "index.log"

    def segment_path(self, slot_bytes: int) -> Path:
        return self.path / f"segment-{slot_bytes}"

    def segment_sizes(self) -> list[int]:
        """The slot sizes for which there is a file."""
        names = (_SEGMENT.match(name) for name in os.listdir(self.path))
        sizes = (int(name[1]) for name in names if name)
        return sorted(size for size in sizes if size % PAGE_BYTES == 0)

    def close(self) -> None:
        os.close(self._fd)

    def _lock(self) -> int:
        new = not (self.path / _FORMAT).exists()
        if new and os.listdir(self.path):
            raise DirectoryRefusedError(
                errno.ENOTEMPTY, f"{self.path} holds files that are not a disk tier's: give an empty directory"
            )
        fd = os.open(self.path / _FORMAT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise DirectoryRefusedError(
                errno.EBUSY, f"{self.path} is in use by another process: give each kvstore a directory of its own"
            ) from None
        return fd

    def _require_format(self) -> None:
        """Under the lock: a file without text is one whose maker was killed before it wrote any."""
        text = os.pread(self._fd, len(_TEXT) * 2, 0)
        if not text:
            os.pwrite(self._fd, _TEXT.encode(), 0)
            os.fsync(self._fd)
            sync_directory(self.path)
        elif text != _TEXT.encode():
            raise DirectoryRefusedError(
                errno.EINVAL,
                f"{self.path} was made by another version ({text.decode(errors='replace').strip()!r}; this one writes "
                f"version {VERSION}): empty it, which loses cached blocks only, or give another directory",
            )
