"""Block ids, reference counts and the prefix index. Pure: it knows no tensor and does no I/O.

Every block is in exactly one place:

    empty       no owner, no hash             ── allocate ──▶  owned
    owned       one or more references        ── release ───▶  empty, or reusable when it has a hash
    reusable    no owner, a hash; LRU order   ── share ─────▶  owned;   ── allocate ──▶ loses its hash, owned
                                              ── expire ────▶  empty

A block gets its hash (`store`) only after its KV has been written, so nothing in the index is ever half made.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from weir_executor.step_output import BlockRemoved, BlockStored, KvEvent


class BlockPool:
    """Hands out blocks, counts their owners, remembers what full blocks hold."""

    def __init__(self, num_blocks: int, *, prefix_cache: bool = True, ttl_seconds: float | None = None) -> None:
        """`ttl_seconds`: how long a block is kept that nobody uses; None: until its room is needed."""
        assert num_blocks > 0, num_blocks
        self.num_blocks = num_blocks
        self._prefix_cache, self._ttl_seconds = prefix_cache, ttl_seconds
        self._now = 0.0  # as `expire` was told last
        self._references = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._empty = list(range(num_blocks - 1, -1, -1))  # a stack: the lowest id is handed out first
        self._reusable: OrderedDict[int, float] = OrderedDict()  # since when; least recently used first
        self._events: list[BlockStored | BlockRemoved] = []

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out now: empty ones and reusable ones."""
        return len(self._empty) + len(self._reusable)

    @property
    def num_cached(self) -> int:
        return len(self._reusable)

    def is_findable(self, block_id: int) -> bool:
        return block_id in self._hash_of

    def holds(self, block_id: int, block_hash: bytes) -> bool:
        return self._hash_of.get(block_id) == block_hash

    def references(self, block_id: int) -> int:
        return self._references[block_id]

    def match(self, block_hashes: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest known prefix. Takes no reference; safe to call from any thread."""
        found = []
        for block_hash in block_hashes:
            block_id = self._block_of.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each and no hash. The caller has looked at `num_free`."""
        assert 0 <= count <= self.num_free, (count, self.num_free)
        block_ids = [self._take_one() for _ in range(count)]
        for block_id in block_ids:
            self._references[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """One more reference on each of these blocks, which hold a prefix or have an owner."""
        for block_id in block_ids:
            if not self._references[block_id]:
                del self._reusable[block_id]
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Give one reference back on each. The end of a chain becomes reusable first: it is of use to the fewest."""
        for block_id in reversed(block_ids):
            assert self._references[block_id] > 0, block_id
            self._references[block_id] -= 1
            if self._references[block_id]:
                continue
            if block_id in self._hash_of:
                self._reusable[block_id] = self._now
            else:
                self._empty.append(block_id)

    def store(self, block_id: int, block_hash: bytes, parent_block_hash: bytes) -> bool:
        """Make an owned, written block findable. False when its content is already known under another id."""
        assert self._references[block_id] > 0, block_id
        if not self._prefix_cache or block_hash in self._block_of:
            return False
        assert block_id not in self._hash_of, block_id
        self._hash_of[block_id] = block_hash
        self._block_of[block_hash] = block_id
        self._note_stored(block_hash, parent_block_hash)
        return True

    def expire(self, now: float) -> None:
        """It is now this time: reusable blocks that nobody has used for the lifetime are empty."""
        self._now = now
        while self._reusable and self.seconds_to_expiry == 0.0:
            block_id, _ = self._reusable.popitem(last=False)
            self._forget(block_id)
            self._empty.append(block_id)

    @property
    def seconds_to_expiry(self) -> float | None:
        """Until the next reusable block is due, from when `expire` was called last; None: none ever is."""
        if self._ttl_seconds is None or not self._reusable:
            return None
        since = next(iter(self._reusable.values()))
        return max(0.0, since + self._ttl_seconds - self._now)

    def take_events(self) -> list[KvEvent]:
        """What became findable and what was forgotten since the last call, in order."""
        events, self._events = self._events, []
        return list(events)

    def check_integrity(self) -> None:
        empty, reusable = set(self._empty), set(self._reusable)
        owned = {block_id for block_id, count in enumerate(self._references) if count}
        assert len(empty) == len(self._empty), "an empty block is listed twice"
        assert len(empty) + len(reusable) + len(owned) == self.num_blocks, (empty, reusable, owned)
        assert len(empty | reusable | owned) == self.num_blocks, (empty, reusable, owned)
        assert all(count >= 0 for count in self._references), self._references
        assert {block_id: block_hash for block_hash, block_id in self._block_of.items()} == self._hash_of
        assert reusable <= self._hash_of.keys() <= reusable | owned, (reusable, self._hash_of)

    def _take_one(self) -> int:
        if self._empty:
            return self._empty.pop()
        block_id, _ = self._reusable.popitem(last=False)
        self._forget(block_id)
        return block_id

    def _forget(self, block_id: int) -> None:
        block_hash = self._hash_of.pop(block_id)
        del self._block_of[block_hash]
        self._note_removed(block_hash)

    def _note_stored(self, block_hash: bytes, parent: bytes) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockStored) and last.block_hashes[-1] == parent:
            self._events[-1] = BlockStored((*last.block_hashes, block_hash), last.parent_block_hash)
        else:
            self._events.append(BlockStored((block_hash,), parent))

    def _note_removed(self, block_hash: bytes) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved):
            self._events[-1] = BlockRemoved((*last.block_hashes, block_hash))
        else:
            self._events.append(BlockRemoved((block_hash,)))
