"""The folder in memory that the service shares with the engine's processes: the service's side.

    prefixes/HASH-FIRST-END-NUMBER   blocks of a prompt, each all ranks' parts one after another
    leases/REQUEST-NUMBER            the same file by another name: it stays until the leader needs it no more
    scopes/ROOT                      salts that stand for a scope, for engines that tell of a salt only its number
    ranks/RANK                       what a rank's blocks are
    owner                            locked for as long as the service lives: what a dead one left, the next removes

A prefix is written under another name and renamed, so nobody sees a part of one. The file system counts who holds it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from weir_chassis.errors import Unsupported
from weir_executor.request import StoredPrefix
from weir_executor.trtllm.connector.layout import ShardLayout, agreed, decode
from weir_executor.trtllm.connector.names import StagedName

_log = logging.getLogger(__name__)
PREFIXES, LEASES, SCOPES, RANKS = "prefixes", "leases", "scopes", "ranks"
_FOLDER, _OWNER = "weir-connector-", "owner"
# A deployment has few salts at work; blocks of further ones are shared by the engine alone.
_MAX_SCOPES: Final = 1024
# Far above what any load takes. What the leader has not given back by then it has forgotten, or is dead.
_LEASE_SECONDS: Final = 600.0


class Area:
    """Its folder goes with it. Used by any thread."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """`directory`: in memory, such as /dev/shm. `max_bytes`: of staged prefixes, those that only leases keep not
        counted. Raises OSError, and Unsupported where there is no room for them."""
        remove_orphans(directory)
        if (free := shutil.disk_usage(directory).free) < max_bytes:
            raise Unsupported(
                f"trtllm_staging_dir {directory} has {free} bytes free, fewer than kvstore_load_bytes {max_bytes}"
            )
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: dict[StagedName, int] = {}
        self._staged_bytes = 0
        self._scopes: set[bytes] = set()
        self._numbers = count()
        self.path = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=directory))  # 0700
        for name in (PREFIXES, LEASES, SCOPES, RANKS):
            (self.path / name).mkdir()
        self._owner: int | None = _own(self.path)

    @property
    def staged_bytes(self) -> int:
        return self._staged_bytes

    def layout(self, ranks: int) -> ShardLayout:
        """What all ranks say. Raises Unsupported."""
        told = {int(each.name): decode(each.read_text()) for each in (self.path / RANKS).iterdir()}
        return agreed(told, ranks)

    def note_scope(self, root: bytes) -> None:
        """Before a request with its salt is submitted. Raises OSError."""
        if root not in self._scopes and len(self._scopes) < _MAX_SCOPES:
            (self.path / SCOPES / root.hex()).touch()
            self._scopes.add(root)

    def stage(self, prefix: StoredPrefix, block_hashes: Sequence[bytes]) -> StagedName | None:
        """Copies the blocks. None: there is no room, for which nobody waits. Raises OSError."""
        end = prefix.first_block + len(prefix.blocks)
        name = StagedName(block_hashes[end - 1], prefix.first_block, end, next(self._numbers))
        size = sum(map(len, prefix.blocks))
        with self._lock:
            if self._staged_bytes + size > self._max_bytes:
                return None
            self._staged_bytes += size
            self._sizes[name] = size
        try:
            self._write(name, prefix.blocks)
        except BaseException:
            self._give_back(name)
            raise
        return name

    def drop(self, name: StagedName) -> None:
        """Nobody new finds it; whoever has leased it reads it to its end. Takes a while, for a large one."""
        with suppress(OSError):  # the folder is gone, and this with it
            (self.path / PREFIXES / str(name)).unlink()
        self._give_back(name)

    def sweep(self, now: float | None = None) -> int:
        """Ends leases that are too old, and says how many are left. `now`: seconds since the epoch."""
        oldest, left = (time.time() if now is None else now) - _LEASE_SECONDS, 0
        for lease in os.scandir(self.path / LEASES):
            try:
                if lease.stat().st_ctime < oldest:
                    os.unlink(lease.path)
                else:
                    left += 1
            except FileNotFoundError:
                continue  # given back meanwhile
        return left

    def close(self) -> None:
        """Twice is once."""
        shutil.rmtree(self.path, ignore_errors=True)
        owner, self._owner = self._owner, None
        if owner is not None:
            os.close(owner)

    def _write(self, name: StagedName, blocks: Sequence[bytes | memoryview]) -> None:
        partial = self.path / f"writing-{name.number}"
        try:
            with partial.open("xb", buffering=0) as file:
                for block in blocks:
                    _write_all(file.fileno(), block)
            partial.rename(self.path / PREFIXES / str(name))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _give_back(self, name: StagedName) -> None:
        with self._lock:
            self._staged_bytes -= self._sizes.pop(name, 0)


def remove_orphans(directory: Path) -> None:
    """What services left that were killed: an engine that has died ends its service without a farewell."""
    for path in directory.glob(f"{_FOLDER}*"):
        with suppress(OSError), (path / _OWNER).open("rb") as owner:  # another user's, or another's that ends just now
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _log.info("%s is nobody's any more, and removed", path)
            shutil.rmtree(path, ignore_errors=True)


def _own(path: Path) -> int:
    """The lock's file, open. It is locked before it has its name: without one the folder is nobody's orphan."""
    file = os.open(path / f"new-{_OWNER}", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    (path / f"new-{_OWNER}").rename(path / _OWNER)
    return file


def _write_all(file: int, block: bytes | memoryview) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(file, rest) :]
