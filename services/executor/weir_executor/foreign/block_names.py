"""Which blocks an engine holds that names them in its own way: ours are chained over the tokens it tells. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from weir.kvstore.v1.block_hash import block_hash
from weir_executor.step_output import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent


class BlockNames:
    """By the engine's own hash. It may keep one block twice, on two levels: it is gone when both are."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._held: dict[Hashable, bytes] = {}  # the engine's → ours; no more than its pools hold
        self._counts: dict[bytes, int] = {}  # of ours

    @property
    def hashes(self) -> frozenset[bytes]:
        """Of ours, those that it holds."""
        return frozenset(self._counts)

    def __contains__(self, found: bytes) -> bool:
        return found in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def leading(self, block_hashes: Sequence[bytes]) -> int:
        """How many of these it holds, from the first on."""
        return next((i for i, each in enumerate(block_hashes) if each not in self), len(block_hashes))

    def find(self, engine_hash: Hashable) -> bytes | None:
        return self._held.get(engine_hash)

    def store(
        self, blocks: Iterable[tuple[Hashable, Sequence[int]]], *, parent: bytes | None = None, root: bytes = b""
    ) -> list[KvEvent]:
        """A chain after `parent`, one of our hashes, or else from a scope's root on. What is new is told.

        A part of a block has no name, and nothing after it has one either.
        """
        events: list[KvEvent] = []
        previous, told_parent = (root, b"") if parent is None else (parent, parent)
        new: list[bytes] = []
        for engine_hash, tokens in blocks:
            if len(tokens) != self._block_size:
                break
            previous = block_hash(previous, tokens)
            if self._held.get(engine_hash, previous) != previous:
                events += self.remove([engine_hash])  # its name means something else now
            if self._hold(engine_hash, previous):
                new.append(previous)
                continue
            if new:
                events.append(BlockStored(new, told_parent))
            new, told_parent = [], previous  # it was told of before, on another level
        if new:
            events.append(BlockStored(new, told_parent))
        return events

    def remove(self, engine_hashes: Iterable[Hashable]) -> list[KvEvent]:
        gone = []
        for engine_hash in engine_hashes:
            ours = self._held.pop(engine_hash, None)
            if ours is not None and self._uncount(ours):
                gone.append(ours)
        return [BlockRemoved(gone)] if gone else []

    def clear(self) -> list[KvEvent]:
        self._held.clear()
        self._counts.clear()
        return [AllBlocksCleared()]

    def _hold(self, engine_hash: Hashable, ours: bytes) -> bool:
        """Whether it is new."""
        if engine_hash in self._held:
            return False
        self._held[engine_hash] = ours
        self._counts[ours] = self._counts.get(ours, 0) + 1
        return self._counts[ours] == 1

    def _uncount(self, ours: bytes) -> bool:
        """Whether it is gone."""
        left = self._counts[ours] - 1
        if left:
            self._counts[ours] = left
            return False
        del self._counts[ours]
        return True
