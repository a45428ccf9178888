"""The seam for who goes next. Pure: a policy names blocks and moves none.

The tier tells it which blocks may go (visible, and nobody refers to them); a leased block is never in here.
"""

from __future__ import annotations

from typing import Protocol


class EvictionPolicy(Protocol):
    """An order among the blocks that may go. One object per tier and tenant.

    `add` after `remove` is the same block again: what a policy has learned of it may be kept by its address, bounded.
    """

    def __len__(self) -> int: ...

    def __contains__(self, block_id: int) -> bool: ...

    @property
    def size_bytes(self) -> int:
        """Of all that may go."""
        ...

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None:
        """The block may go from now on. It was used just now: a new block, or one whose last lease has ended."""
        ...

    def remove(self, block_id: int) -> None:
        """The block may not go any more (it was leased: it is being used), or is gone."""
        ...

    def touch(self, block_id: int) -> None:
        """The block was used just now."""
        ...

    def victims(self, *, size_bytes: int, blocks: int) -> list[int] | None:
        """The next to go until this much would be free, or None when even all of them would not be enough.

        Names them and changes nothing that another call could notice: who then goes is told by `remove`.
        """
        ...

    def check_integrity(self) -> None: ...
