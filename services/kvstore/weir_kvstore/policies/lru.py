"""Least recently used first. Pure."""

from __future__ import annotations

from collections import OrderedDict


class Lru:
    """Least recently used first."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[int, int] = OrderedDict()  # block id → bytes, the next to go first
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._sizes

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None:  # noqa: ARG002  # it remembers nobody who left
        assert block_id not in self._sizes, block_id
        self._sizes[block_id] = size_bytes
        self._bytes += size_bytes

    def remove(self, block_id: int) -> None:
        self._bytes -= self._sizes.pop(block_id)

    def touch(self, block_id: int) -> None:
        self._sizes.move_to_end(block_id)

    def renew(self, block_id: int) -> None:
        if block_id in self._sizes:
            self._sizes.move_to_end(block_id)

    def victims(self, *, size_bytes: int, blocks: int) -> list[int] | None:
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
