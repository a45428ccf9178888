"""Full blocks that are still to be copied out for the kvstore, and when that is. Pure.

Copying a block out, sending and storing it costs a machine that computes as well a few milliseconds of its steps, and a
stored block is of use later at the earliest. So while requests run, blocks leave at a bounded rate, oldest first; when
none does, all that is left leaves. Nothing about a block can change while it waits: what has a hash is never written
again. One that the pool has given away meanwhile, or that nobody wants, the store having it already, is not offered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from weir_executor.paged.batch import NewBlock

# So that whoever comes while nobody runs waits for milliseconds, not for all that is left.
_IDLE_BLOCKS = 32


class Offers:
    def __init__(self, blocks_per_second: float | None, holds: Callable[[int, bytes], bool], num_blocks: int) -> None:
        """`blocks_per_second` while requests run; None: as they come. `holds`: whether a block still has this hash.

        What waits is in the pool, so more than its `num_blocks` would be of no use; the oldest go then.
        """
        assert blocks_per_second is None or blocks_per_second > 0, blocks_per_second
        self._blocks_per_second, self._holds = blocks_per_second, holds
        self._waiting: deque[NewBlock] = deque(maxlen=num_blocks)
        self._allowed, self._looked_at = 0.0, 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, blocks: Sequence[NewBlock]) -> None:
        self._waiting += blocks

    def take(self, now: float, wants: Callable[[bytes], bool], *, busy: bool) -> list[NewBlock]:
        """What to copy out now, at time `now` in seconds. `wants` is asked as late as that: it may have learned."""
        count = self._count(now, busy)
        taken: list[NewBlock] = []
        while self._waiting and len(taken) < count:
            block = self._waiting.popleft()
            if self._holds(block.block_id, block.block_hash) and wants(block.block_hash):
                taken.append(block)
        self._allowed = max(0.0, self._allowed - len(taken))
        return taken

    def _count(self, now: float, busy: bool) -> int:
        """What was not used for a second is not saved up: a burst would be what this is there to prevent."""
        if self._blocks_per_second is None:
            return len(self._waiting)
        earned = (now - self._looked_at) * self._blocks_per_second
        self._allowed = min(self._allowed + earned, max(1.0, self._blocks_per_second))
        self._looked_at = now
        return int(self._allowed) if busy else _IDLE_BLOCKS
