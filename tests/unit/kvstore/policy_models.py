"""The policies again, as their papers tell them: lists, and no thought of time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weir_kvstore.policies.lfu import HALF_LIFE_USES


class LruModel:
    def __init__(self) -> None:
        self.queue: list[int] = []

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None:
        self.queue.append(block_id)

    def remove(self, block_id: int) -> None:
        self.queue.remove(block_id)

    def touch(self, block_id: int) -> None:
        self.queue.remove(block_id)
        self.queue.append(block_id)

    def renew(self, block_id: int) -> None:
        if block_id in self.queue:
            self.touch(block_id)

    def order(self, size_bytes: int, blocks: int) -> list[int]:
        return list(self.queue)


class FifoModel:
    """All that ever came, in order; who is not here is passed over."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.here: set[int] = set()

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None:
        self.here.add(block_id)
        if block_id not in self.came:
            self.came.append(block_id)

    def remove(self, block_id: int) -> None:
        self.here.remove(block_id)

    def touch(self, block_id: int) -> None:
        pass

    def renew(self, block_id: int) -> None:
        self.came.remove(block_id)
        self.came.append(block_id)

    def order(self, size_bytes: int, blocks: int) -> list[int]:
        return [block_id for block_id in self.came if block_id in self.here]


class LfuModel:
    """Every use of every address, with its time; a count is summed up anew from them all."""

    def __init__(self) -> None:
        self.uses: dict[bytes, list[float]] = {}
        self.here: dict[int, bytes] = {}
        self.now = 0.0

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None:
        self.here[block_id] = address
        self._use(address, len(self.here) - 1)

    def remove(self, block_id: int) -> None:
        del self.here[block_id]

    def touch(self, block_id: int) -> None:
        self._use(self.here[block_id], len(self.here))

    def renew(self, block_id: int) -> None:
        if block_id in self.here:
            self.touch(block_id)

    def order(self, size_bytes: int, blocks: int) -> list[int]:
        return sorted(self.here, key=lambda block_id: self.count(self.here[block_id]))

    def count(self, address: bytes) -> float:
        return math.fsum(0.5 ** (self.now - when) for when in self.uses[address])

    def _use(self, address: bytes, others: int) -> None:
        self.now += 1 / (HALF_LIFE_USES * (1 + others))
        self.uses.setdefault(address, []).append(self.now)


@dataclass
class _Entry:
    block_id: int
    address: bytes
    size_bytes: int
    arrival: int
    uses: int = 0
    from_small: bool = True


class S3FifoModel:
    """Three lists: S, M and G of the paper's Algorithm 1, and those that it has evicted and nobody has removed yet."""

    def __init__(self) -> None:
        self.small: list[_Entry] = []
        self.main: list[_Entry] = []
        self.evicted: list[_Entry] = []
        self.ghosts: list[tuple[bytes, int]] = []
        self.away: dict[int, tuple[bool, _Entry]] = {}  # whether it was in main, and what it was
        self.clock = 0

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None:
        came_again = address in [ghost for ghost, _ in self.ghosts]
        self.ghosts = [ghost for ghost in self.ghosts if ghost[0] != address]
        if block_id in self.away:
            in_main, entry = self.away.pop(block_id)
            entry.uses = min(3, entry.uses + 1)
        else:
            in_main, entry = came_again, _Entry(block_id, address, size_bytes, self._tick())
        (self.main if in_main else self.small).append(entry)

    def remove(self, block_id: int) -> None:
        entry = self._find(block_id)
        if entry in self.evicted:
            if entry.from_small:
                self._haunt(entry)
            self.evicted.remove(entry)
            entry.uses, entry.arrival = 0, self._tick()
            self.away[block_id] = (True, entry)
            return
        queue = self.main if entry in self.main else self.small
        queue.remove(entry)
        self.away[block_id] = (queue is self.main, entry)

    def touch(self, block_id: int) -> None:
        entry = self._find(block_id)
        if entry in self.evicted:
            self._to_main(entry, self.evicted, uses=0)
        else:
            entry.uses = min(3, entry.uses + 1)

    def renew(self, block_id: int) -> None:
        entry = self.away[block_id][1] if block_id in self.away else self._find(block_id)
        if entry in self.evicted:
            self.touch(block_id)
        else:
            entry.arrival = self._tick()

    def order(self, size_bytes: int, blocks: int) -> list[int]:
        while sum(entry.size_bytes for entry in self.evicted) < size_bytes or len(self.evicted) < blocks:
            self._evict()
        return [entry.block_id for entry in self.evicted]

    def _evict(self) -> None:
        small_bytes = sum(entry.size_bytes for entry in self.small)
        if self.small and (not self.main or small_bytes >= 0.1 * self._bytes()):
            entry = min(self.small, key=lambda e: e.arrival)
            if entry.uses > 1:
                self._to_main(entry, self.small, uses=0)
            else:
                self.small.remove(entry)
                entry.from_small = True
                self.evicted.append(entry)
            return
        entry = min(self.main, key=lambda e: e.arrival)
        if entry.uses > 0:
            self._to_main(entry, self.main, uses=entry.uses - 1)
        else:
            self.main.remove(entry)
            entry.from_small = False
            self.evicted.append(entry)

    def _to_main(self, entry: _Entry, queue: list[_Entry], *, uses: int) -> None:
        queue.remove(entry)
        entry.uses, entry.arrival = uses, self._tick()
        self.main.append(entry)

    def _haunt(self, entry: _Entry) -> None:
        """Called while the block itself still counts."""
        self.ghosts = [g for g in self.ghosts if g[0] != entry.address] + [(entry.address, entry.size_bytes)]
        while sum(size for _, size in self.ghosts) > self._bytes() or len(self.ghosts) > len(self._all()):
            del self.ghosts[0]

    def _all(self) -> list[_Entry]:
        return [*self.small, *self.main, *self.evicted]

    def _bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._all())

    def _find(self, block_id: int) -> _Entry:
        return next(entry for entry in self._all() if entry.block_id == block_id)

    def _tick(self) -> int:
        self.clock += 1
        return self.clock
