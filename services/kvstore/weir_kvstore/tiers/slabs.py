"""Which part of an arena is whose. Pure: it knows offsets and no memory.

A payload gets one slab, contiguous, of its own size. A store serves a few models, and all blocks of a model are of one
size, so a freed slab is taken again by a block that fits it exactly: classes of sizes come about by themselves, and
none keeps memory when its model is gone, because free neighbours become one. Of what is free the smallest that fits is
taken (best fit, as in Knuth, The Art of Computer Programming, volume 1, 2.5).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import pairwise
from typing import Final

# So that no two payloads share a cache line, and bigger ones no page: direct reads from disk want that.
_LINE_BYTES: Final = 64
_PAGE_BYTES: Final = 4096
# From here on, whole pages waste less than a sixteenth.
_PAGED_BYTES: Final = 16 * _PAGE_BYTES


def slab_bytes(size_bytes: int) -> int:
    """What a payload of this size takes."""
    unit = _LINE_BYTES if size_bytes < _PAGED_BYTES else _PAGE_BYTES
    return -(-size_bytes // unit) * unit


def arena_bytes(capacity_bytes: int) -> int:
    """Room for payloads of this size together, for what rounding and the gaps between sizes cost, in whole pages.

    Most of the surplus is never touched: where all blocks are of one size, there are no gaps.
    """
    surplus = capacity_bytes // 8 + 1024 * 1024
    return -(-(capacity_bytes + surplus) // _PAGE_BYTES) * _PAGE_BYTES


class Slabs:
    """Free ranges by their size, by their beginning and by their end."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._free: dict[int, int] = {}  # beginning → size
        self._ends: dict[int, int] = {}  # end → beginning
        self._by_size: dict[int, dict[int, None]] = {}  # size → beginnings, the first one first; none is empty
        self._sizes: list[int] = []  # the keys of `_by_size`, in order
        self._put_back(0, size_bytes)

    def take(self, size_bytes: int) -> int | None:
        """The offset of a slab for a payload of this size; None when no free range is long enough."""
        wanted = slab_bytes(size_bytes)
        place = bisect_left(self._sizes, wanted)
        if place == len(self._sizes):
            return None
        start = next(iter(self._by_size[self._sizes[place]]))
        found = self._take_out(start)
        if found > wanted:
            self._put_back(start + wanted, found - wanted)
        return start

    def give(self, offset: int, size_bytes: int) -> None:
        """The slab that was taken for a payload of this size is free."""
        start, end = offset, offset + slab_bytes(size_bytes)
        if (before := self._ends.get(start)) is not None:
            self._take_out(before)
            start = before
        if end in self._free:
            end += self._take_out(end)
        self._put_back(start, end - start)

    def check_integrity(self) -> None:
        """Free ranges do not touch, and all three ways to find them agree."""
        ranges = sorted(self._free.items())
        assert all(size > 0 and start + size <= self._size_bytes for start, size in ranges)
        assert all(start + size < after for (start, size), (after, _) in pairwise(ranges))
        assert self._ends == {start + size: start for start, size in ranges}
        assert self._sizes == sorted(self._by_size)
        assert all(self._by_size.values())
        assert sorted((start, size) for size, starts in self._by_size.items() for start in starts) == ranges

    @property
    def free_bytes(self) -> int:
        return sum(self._free.values())

    def _put_back(self, start: int, size: int) -> None:
        self._free[start] = size
        self._ends[start + size] = start
        if size not in self._by_size:
            self._by_size[size] = {}
            insort(self._sizes, size)
        self._by_size[size][start] = None

    def _take_out(self, start: int) -> int:
        """How long the range is that is free no more."""
        size = self._free.pop(start)
        del self._ends[start + size]
        starts = self._by_size[size]
        del starts[start]
        if not starts:
            del self._by_size[size]
            del self._sizes[bisect_left(self._sizes, size)]
        return size
