"""Of which tokens a second model's KV is in the blocks of the first. Pure.

A draft model keeps its keys and values under the block ids of the model that it guesses for: no block is ever allocated
for it alone. It need not have written them all: a block that was loaded from the store, or computed while nobody
guessed, holds none of its KV, and what it lacks it computes when it is next asked for a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weir_executor.paged.batch import Batch


class WrittenTokens:
    """Counts, for each block, how many of its first tokens are written."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._counts = [0] * num_blocks

    def note(self, batch: Batch) -> None:
        """Blocks that this step loads, or begins to fill, hold something new from now on."""
        self.forget(load.block_id for load in batch.loads)
        for row in batch.scheduled:
            self.forget(self.begun(row.blocks, row.first, row.count))

    def forget(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._counts[block_id] = 0

    def begun(self, blocks: Sequence[int], first: int, count: int) -> Sequence[int]:
        """A sequence's blocks whose first token is among `count` from `first` on."""
        return blocks[-(-first // self._block_size) : -(-(first + count) // self._block_size)]

    def leading(self, blocks: Sequence[int], end: int) -> int:
        """How many of a sequence's first `end` tokens are written, up to the first that is not."""
        for index in range(-(-end // self._block_size)):
            if self._counts[blocks[index]] < self._block_size:
                return min(end, index * self._block_size + self._counts[blocks[index]])
        return end

    def write(self, blocks: Sequence[int], first: int, count: int) -> None:
        """Tokens of a sequence are written now, where its written ones end or before; those after them are not."""
        end = first + count
        for index in range(first // self._block_size, -(-end // self._block_size)):
            start = index * self._block_size
            assert self._counts[blocks[index]] >= first - start, (first, blocks[index])
            self._counts[blocks[index]] = min(end - start, self._block_size)
