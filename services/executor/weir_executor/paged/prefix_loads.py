"""What a step writes from stored prefixes before it computes anything, each block once for all who share it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.sequence import Sequence

CountUsable = Callable[[Items[bytes | memoryview]], int]  # how many of a stored prefix's leading blocks are sound


class PrefixLoads:
    """The newest step's. `by_hash` are the blocks that it writes."""

    def __init__(self, count_usable: CountUsable, block_size: int) -> None:
        """`count_usable` looks at every byte of the blocks it is given, so it is given only those to be loaded."""
        self._count_usable, self._block_size = count_usable, block_size
        self.by_hash: dict[bytes, int] = {}

    def begin_step(self) -> None:
        self.by_hash.clear()

    def add(self, sequence: Sequence, num_known: int) -> list[BlockLoad]:
        """The stored blocks that go on where its known prefix ends, each into the sequence's block of that number."""
        first = sequence.live.first_stored_block
        if first > num_known:
            return []
        limit = sequence.most_known_blocks(self._block_size)
        stored = sequence.live.stored_blocks[num_known - first : limit - first]
        usable = stored[: self._count_usable(stored)]
        loads = [BlockLoad(sequence.blocks[index], payload) for index, payload in enumerate(usable, num_known)]
        self.by_hash.update(zip(sequence.block_hashes[num_known:], (load.block_id for load in loads), strict=False))
        return loads
