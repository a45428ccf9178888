"""Who goes next. Pure: it names blocks and moves none.

The index tells it which blocks may go (visible, and nobody refers to them); a leased block is never in here.
"""

from __future__ import annotations

from collections import OrderedDict


class Lru:
    """Least recently used first."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[int, int] = OrderedDict()  # block id → bytes, the next to go first
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._sizes

    def add(self, block_id: int, size_bytes: int) -> None:
        """The block may go from now on; it was used just now."""
        assert block_id not in self._sizes, block_id
        self._sizes[block_id] = size_bytes
        self._bytes += size_bytes

    def remove(self, block_id: int) -> None:
        """The block may not go any more, or is gone."""
        self._bytes -= self._sizes.pop(block_id)

    def touch(self, block_id: int) -> None:
        """The block was used just now."""
        self._sizes.move_to_end(block_id)

    def victims(self, *, size_bytes: int, blocks: int) -> list[int] | None:
        """The next to go until this much would be free, or None when even all of them would not be enough."""
        if size_bytes > self._bytes or blocks > len(self._sizes):
            return None
        chosen: list[int] = []
        for block_id, block_bytes in self._sizes.items():
            if size_bytes <= 0 and len(chosen) >= blocks:
                break
            chosen.append(block_id)
            size_bytes -= block_bytes
        return chosen

    def check_integrity(self) -> None:
        assert self._bytes == sum(self._sizes.values())
