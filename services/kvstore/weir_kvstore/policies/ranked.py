"""Block ids by rank, the lowest first. Pure."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, TypeVar

R = TypeVar("R", int, float)


class Ranked(Generic[R]):
    """A heap from which nothing is taken out in the middle: what has left or has a new rank is passed over at the top.

    O(log n) for each call; of two with one rank the one that got it first comes first.
    """

    def __init__(self) -> None:
        self._serials = count()  # tells an entry of the heap from an older one of the same block and rank
        self._entries: dict[int, tuple[R, int, int]] = {}  # block id → rank, serial, block id
        self._sizes: dict[int, int] = {}
        self._heap: list[tuple[R, int, int]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._entries

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def size_of(self, block_id: int) -> int:
        return self._sizes[block_id]

    def rank(self, block_id: int) -> R:
        return self._entries[block_id][0]

    def add(self, block_id: int, size_bytes: int, rank: R) -> None:
        assert block_id not in self._entries, block_id
        self._sizes[block_id] = size_bytes
        self._bytes += size_bytes
        self._place(block_id, rank)

    def move(self, block_id: int, rank: R) -> None:
        assert block_id in self._entries, block_id
        self._place(block_id, rank)

    def remove(self, block_id: int) -> R:
        """The rank that it had."""
        self._bytes -= self._sizes.pop(block_id)
        return self._entries.pop(block_id)[0]

    def first(self) -> int:
        """The block of the lowest rank; there is one."""
        while self._entries.get(self._heap[0][2]) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def victims(self, *, size_bytes: int, blocks: int) -> list[int] | None:
        """The lowest until there are this many blocks and bytes; None when there are not."""
        if size_bytes > self._bytes or blocks > len(self._entries):
            return None
        chosen: list[int] = []
        while size_bytes > 0 or len(chosen) < blocks:
            block_id = self.first()
            heapq.heappop(self._heap)
            chosen.append(block_id)
            size_bytes -= self._sizes[block_id]
        for block_id in chosen:
            heapq.heappush(self._heap, self._entries[block_id])
        return chosen

    def check_integrity(self) -> None:
        assert self._entries.keys() == self._sizes.keys()
        assert self._bytes == sum(self._sizes.values())
        assert sorted(self._entries.values()) == sorted(e for e in self._heap if self._entries.get(e[2]) is e)

    def _place(self, block_id: int, rank: R) -> None:
        entry = (rank, next(self._serials), block_id)
        self._entries[block_id] = entry
        heapq.heappush(self._heap, entry)
        # More than half of it would be passed over: made anew, which so many calls have paid for.
        if len(self._heap) > 64 + 2 * len(self._entries):
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)


class RankedPolicy(Generic[R]):
    """What a policy that ranks its blocks, and lets the lowest go first, has by its order alone."""

    def __init__(self) -> None:
        self._order: Ranked[R] = Ranked()

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._order

    @property
    def size_bytes(self) -> int:
        return self._order.size_bytes

    def victims(self, *, size_bytes: int, blocks: int) -> list[int] | None:
        return self._order.victims(size_bytes=size_bytes, blocks=blocks)

    def check_integrity(self) -> None:
        self._order.check_integrity()
