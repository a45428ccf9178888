"""The seam for who goes next. Pure: a policy names blocks and moves none.

The tier tells it which blocks may go (visible, and nobody refers to them); a leased block is never in here.
"""

from __future__ import annotations

from typing import Final, Protocol

# Of blocks that were taken out, so that those that come back find their place again. As many as the longest chain has,
# for one lease takes out that many; whoever is forgotten comes back like new.
MAX_REMEMBERED_BLOCKS: Final = 65_536


class EvictionPolicy(Protocol):
    """An order among the blocks that may go. One object per tier and tenant.

    A chain goes from its end, for without its beginning the rest cannot be matched. So whoever uses several of its
    blocks tells of a child before its parent, and of the parents of a new block by `renew`.

    `add` after `remove` is the same block again: what a policy has learned of it may be kept, bounded.
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

    def renew(self, block_id: int) -> None:
        """A block after it in its chain is new: it goes no sooner than a block that is new itself.

        One that is leased keeps this for when it comes back. Nothing happens for one that is not known.
        """
        ...

    def victims(self, *, size_bytes: int, blocks: int) -> list[int] | None:
        """The next to go until this much would be free, or None when even all of them would not be enough.

        Who then goes is told by `remove`. Asked again before any other call, it names the same, and begins with them
        where more is asked for.
        """
        ...

    def check_integrity(self) -> None: ...
