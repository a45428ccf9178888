"""The folder in memory that the service shares with the engine's processes: the service's side.

    prefixes/HASH-FIRST-END-NUMBER   blocks of a prompt, each all ranks' parts one after another
    leases/REQUEST-NUMBER            the same file by another name: it stays until the leader needs it no more
    scopes/ROOT                      salts that stand for a scope, for engines that tell of a salt only its number
    ranks/RANK                       what a rank's blocks are

A prefix is written under another name and renamed, so nobody sees a part of one. The file system counts who holds it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Final

from weir_executor.engine import StoredPrefix
from weir_executor.trtllm.connector.layout import ShardLayout, agreed, decode
from weir_executor.trtllm.connector.names import StagedName

PREFIXES, LEASES, SCOPES, RANKS = "prefixes", "leases", "scopes", "ranks"
# A deployment has few salts at work; blocks of further ones are shared by the engine alone.
_MAX_SCOPES: Final = 1024
# Far above what any load takes. What the leader has not given back by then it has forgotten, or is dead.
_LEASE_SECONDS: Final = 600.0


class Area:
    """Its folder goes with it. Used by any thread."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """`directory`: in memory, such as /dev/shm. `max_bytes`: of staged prefixes, those that only leases keep not
        counted. Raises OSError."""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._staged_bytes = 0
        self._scopes: set[bytes] = set()
        self._numbers = count()
        self.path = Path(tempfile.mkdtemp(prefix="weir-connector-", dir=directory))  # 0700
        for name in (PREFIXES, LEASES, SCOPES, RANKS):
            (self.path / name).mkdir()

    @property
    def staged_bytes(self) -> int:
        return self._staged_bytes

    def layout(self, ranks: int) -> ShardLayout:
        """What all ranks say. Raises Unsupported."""
        told = {int(each.name): decode(each.read_text()) for each in (self.path / RANKS).iterdir()}
        return agreed(told, ranks)

    def note_scope(self, root: bytes) -> None:
        """Before a request with its salt is submitted."""
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
        try:
            self._write(name, prefix.blocks)
        except BaseException:
            self._give_back(size)
            raise
        return name

    def drop(self, name: StagedName) -> None:
        """Nobody new finds it; whoever has leased it reads it to its end."""
        path = self.path / PREFIXES / str(name)
        size = path.stat().st_size
        path.unlink()
        self._give_back(size)

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
        shutil.rmtree(self.path, ignore_errors=True)

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

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._staged_bytes -= size


def _write_all(file: int, block: bytes | memoryview) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(file, rest) :]
