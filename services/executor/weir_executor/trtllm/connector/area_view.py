"""The folder that the service shares with the engine's processes: the side of the leader and of every rank."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from weir_executor.trtllm.connector.area import LEASES, PREFIXES, RANKS, SCOPES
from weir_executor.trtllm.connector.layout import ShardLayout
from weir_executor.trtllm.connector.names import StagedName, furthest, parse

# Bounded by the service, which keeps no more loads than that; a folder with more is not ours.
_MAX_STAGED: Final = 4096


class AreaView:
    """`salt_id`: the engine's own number of a salt, for versions that tell nothing else of it."""

    def __init__(self, path: Path, salt_id: Callable[[str], int] | None = None) -> None:
        self._path, self._salt_id = path, salt_id
        self._roots: dict[int, bytes | None] = {}  # by number; None: two have it
        self._known_scopes: set[str] = set()

    # ── the leader ────────────────────────────────────────────────────────────────────────────────────────────────────

    def staged(self) -> Sequence[StagedName]:
        """All that is ready. Raises OSError."""
        names = os.listdir(self._path / PREFIXES)[:_MAX_STAGED]
        return [name for name in map(parse, names) if name is not None]

    def lease(
        self, lease: str, staged: Sequence[StagedName], hashes: Sequence[bytes], *, computed: int, most: int
    ) -> StagedName | None:
        """The prefix that reaches furthest, held under the name of the lease until `release`. None: there is none.

        `computed`, `most`: as `furthest`'s. One that is being dropped is passed over. Raises OSError.
        """
        left = list(staged)
        while (best := furthest(left, hashes, computed_blocks=computed, max_blocks=most)) is not None:
            try:
                os.link(self._path / PREFIXES / str(best), self._path / LEASES / lease)
            except FileNotFoundError:
                left.remove(best)
            else:
                return best
        return None

    def release(self, lease: str) -> None:
        """Whether it is held or not."""
        with suppress(OSError):
            os.unlink(self._path / LEASES / lease)

    def root_of(self, salt_id: int) -> bytes | None:
        """The scope whose salt has this number. None: none that is shared, or nobody can tell which."""
        if self._salt_id is None:
            return None
        if salt_id not in self._roots:
            self._learn_scopes(self._salt_id)
        return self._roots.get(salt_id)

    # ── every rank ────────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, lease: str) -> mmap.mmap:
        """The leased prefix's bytes, which outlive the lease. Raises OSError, ValueError for an empty one."""
        with (self._path / LEASES / lease).open("rb") as file:
            # Nobody writes to them; PyTorch takes no memory that says so.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def publish(self, rank: int, layout: ShardLayout) -> None:
        """Once the engine has its pool. Raises OSError."""
        (self._path / RANKS / str(rank)).write_text(layout.encode())

    def _learn_scopes(self, salt_id: Callable[[str], int]) -> None:
        for salt in set(os.listdir(self._path / SCOPES)) - self._known_scopes:
            self._known_scopes.add(salt)
            number = salt_id(salt)
            self._roots[number] = None if number in self._roots else bytes.fromhex(salt)
