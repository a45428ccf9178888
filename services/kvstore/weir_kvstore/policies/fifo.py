"""First in, first out. Pure."""

from __future__ import annotations

from itertools import count

from weir_kvstore.policies.policy import MAX_REMEMBERED_BLOCKS
from weir_kvstore.policies.ranked import RankedPolicy
from weir_kvstore.policies.remembered import Remembered


class Fifo(RankedPolicy[int]):
    """The oldest goes first, used or not: a tier that is written in order and wears by writing wants no other.

    A block that was leased comes back to its place. A chain that grows is as young as its youngest block.
    """

    def __init__(self) -> None:
        super().__init__()
        self._arrivals = count()
        self._leased: Remembered[int, int] = Remembered(MAX_REMEMBERED_BLOCKS)  # block id → arrival

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None:  # noqa: ARG002  # it remembers nobody who left
        arrival = self._leased.recall(block_id)
        self._order.add(block_id, size_bytes, next(self._arrivals) if arrival is None else arrival)

    def remove(self, block_id: int) -> None:
        self._leased.keep(block_id, self._order.remove(block_id))

    def touch(self, block_id: int) -> None:
        assert block_id in self._order, block_id

    def renew(self, block_id: int) -> None:
        if block_id in self._order:
            self._order.move(block_id, next(self._arrivals))
        elif self._leased.peek(block_id) is not None:
            self._leased.keep(block_id, next(self._arrivals))
