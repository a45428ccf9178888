"""Blocks that an ended request left behind for another engine to take. Pure: it counts references, and reads nothing.

What is held is computed work, and no more than that: whoever comes for it and finds it gone computes it anew. So it
gives way, oldest first, when it would grow beyond its bound, and when running sequences have no block left.
"""

from __future__ import annotations

from collections.abc import Sequence

from weir_executor.paged.block_pool import BlockPool


class HeldBlocks:
    """By the key of the request that left them, in the order of their ends."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        # Half of the pool: what waits to be fetched must not stop what is being computed.
        self._most = pool.num_blocks // 2
        self._by_key: dict[int, list[int]] = {}
        self.num_blocks = 0  # references: a block that two hold counts twice

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def hold(self, key: int, block_ids: Sequence[int]) -> None:
        """One more reference on each of these, until `release`. What does not fit the bound at all is not held."""
        assert key not in self._by_key, key
        if not block_ids or len(block_ids) > self._most:
            return
        while self.num_blocks + len(block_ids) > self._most:
            self.drop_oldest()
        self._pool.share(block_ids)
        self._by_key[key] = list(block_ids)
        self.num_blocks += len(block_ids)

    def of(self, key: int) -> Sequence[int]:
        """The blocks that are held under this key: none when it has been released or dropped."""
        return self._by_key.get(key, ())

    def release(self, key: int) -> None:
        """An unknown key is no error: what it held may have been dropped."""
        block_ids = self._by_key.pop(key, None)
        if block_ids is not None:
            self._pool.release(block_ids)
            self.num_blocks -= len(block_ids)

    def drop_oldest(self) -> None:
        self.release(next(iter(self._by_key)))

    def drop_all(self) -> None:
        while self:
            self.drop_oldest()

    def references(self) -> list[int]:
        """How often each block of the pool is held, by its id."""
        counts = [0] * self._pool.num_blocks
        for block_ids in self._by_key.values():
            for block_id in block_ids:
                counts[block_id] += 1
        return counts
