"""Least frequently used first, old uses counting less. Pure.

A use counts one when it is made and half as much after every half-life (LRFU: Lee et al., "LRFU: A spectrum of policies
that subsumes the least recently used and least frequently used policies", IEEE Transactions on Computers 50(12), 2001).
All counts fade alike, so their order only changes by uses, and a count is kept as what it would be at the beginning of
time (Cormode et al., "Forward decay: A practical time decay model for streaming systems", ICDE 2009), as its logarithm.
"""

from __future__ import annotations

import math
from typing import Final

from weir_kvstore.policies.policy import MAX_REMEMBERED_BLOCKS
from weir_kvstore.policies.ranked import RankedPolicy
from weir_kvstore.policies.remembered import Remembered

# Uses of the average block: a favourite of 64 uses that nobody wants any more counts like one use after 48.
HALF_LIFE_USES: Final = 8


class Lfu(RankedPolicy[float]):
    """The least used goes first; what was learned of a block outlives its leases and, for a while, its eviction."""

    def __init__(self) -> None:
        super().__init__()
        self._addresses: dict[int, bytes] = {}
        self._scores: Remembered[bytes, float] = Remembered(MAX_REMEMBERED_BLOCKS)  # of those that are not here
        self._now = 0.0  # in half-lives

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None:
        self._addresses[block_id] = address
        self._order.add(block_id, size_bytes, self._use(self._scores.recall(address)))

    def remove(self, block_id: int) -> None:
        self._scores.keep(self._addresses.pop(block_id), self._order.remove(block_id))

    def touch(self, block_id: int) -> None:
        self._order.move(block_id, self._use(self._order.rank(block_id)))

    def renew(self, block_id: int) -> None:
        """Growing a chain is using its beginning. One that is leased is used anyhow when it comes back."""
        if block_id in self._order:
            self.touch(block_id)

    def check_integrity(self) -> None:
        super().check_integrity()
        assert len(self._addresses) == len(self._order)

    def _use(self, score: float | None) -> float:
        """The score with one use more, now."""
        self._now += 1 / (HALF_LIFE_USES * (1 + len(self._order)))
        if score is None:
            return self._now
        high, low = max(score, self._now), min(score, self._now)
        return high + math.log2(1 + 2 ** (low - high))
