"""First in, first out. Pure."""

from __future__ import annotations

from itertools import count

from weir_kvstore.policies.policy import MAX_REMEMBERED_BLOCKS
from weir_kvstore.policies.ranked import Ranked
from weir_kvstore.policies.remembered import Remembered


class Fifo:
    """The oldest goes first, used or not: a tier that is written in order and wears by writing wants no other.

    A block that was leased comes back to its place. A chain that grows is as young as its youngest block.
    """

    def __init__(self) -> None:
        self._arrivals = count()
        self._order: Ranked[int] = Ranked()
        self._leased: Remembered[int, int] = Remembered(MAX_REMEMBERED_BLOCKS)  # block id → arrival

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._order

    @property
    def size_bytes(self) -> int:
        return self._order.size_bytes

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

    def victims(self, *, size_bytes: int, blocks: int) -> list[int] | None:
        return self._order.victims(size_bytes=size_bytes, blocks=blocks)

    def check_integrity(self) -> None:
        self._order.check_integrity()
