"""The fake LLM's KV blocks: found again under the same salt, and told of by events that may overflow."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any


@dataclass
class Held:
    """Blocks of one request: those it found, and those it fills."""

    reused: list[int] = field(default_factory=list)  # by engine hash
    num_new: int = 0


class Pool:
    def __init__(self, num_blocks: int, block_size: int, *, reuse: bool, max_events: int) -> None:
        self.num_blocks, self.block_size, self._reuse, self._max_events = num_blocks, block_size, reuse, max_events
        self._cached: OrderedDict[int, int] = OrderedDict()  # engine hash → how many use it; the oldest unused goes
        self._used = 0  # by requests, cached ones that are used among them
        self._events: deque[dict[str, Any]] = deque()
        self._next_event = 0
        if max_events:
            self._tell({"type": "created", "num_blocks_per_cache_level": [num_blocks, 0]})

    @property
    def used(self) -> int:
        return self._used

    def chain(self, token_ids: Sequence[int], salt: str, lora: int) -> list[int]:
        """Hashes of its full blocks, 64 bits each, signed as the real ones may be."""
        hashes, previous = list[int](), f"{salt}/{lora}".encode()
        for begin in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            previous = blake2b(
                previous + repr(token_ids[begin : begin + self.block_size]).encode(), digest_size=8
            ).digest()
            hashes.append(int.from_bytes(previous, "little", signed=False))
        return hashes

    def admit(self, token_ids: Sequence[int], max_tokens: int, salt: str, lora: int) -> tuple[Held, int] | None:
        """Room for all it may come to, and how many prompt tokens need not be computed. None: not yet."""
        held, known = Held(), self.chain(token_ids[:-1], salt, lora) if self._reuse else []
        for engine_hash in known:
            if engine_hash not in self._cached:
                break
            held.reused.append(engine_hash)
        held.num_new = -(-(len(token_ids) + max_tokens) // self.block_size) - len(held.reused)
        newly_used = sum(not self._cached[engine_hash] for engine_hash in held.reused)
        if self._used + newly_used + held.num_new > self.num_blocks:
            return None
        for engine_hash in held.reused:
            self._cached[engine_hash] += 1
            self._cached.move_to_end(engine_hash)
        self._used += newly_used + held.num_new
        self._evict()
        return held, len(held.reused) * self.block_size

    def store(self, token_ids: Sequence[int], salt: str, lora: int) -> None:
        """What was computed can be found from now on, as far as there is room."""
        if not self._reuse:
            return
        parent: int | None = None
        new: list[tuple[int, int]] = []
        for place, engine_hash in enumerate(self.chain(token_ids, salt, lora)):
            if engine_hash in self._cached:
                parent = parent if new else engine_hash
                self._cached.move_to_end(engine_hash)
                continue
            self._cached[engine_hash] = 0
            new.append((place, engine_hash))
        if new:
            self._tell(
                {
                    "type": "stored",
                    "parent_hash": parent,
                    "blocks": [self._block(token_ids, *each, salt) for each in new],
                }
            )
        self._evict()

    def release(self, held: Held) -> None:
        for engine_hash in held.reused:
            self._cached[engine_hash] -= 1
            self._used -= not self._cached[engine_hash]
        self._used -= held.num_new
        held.reused, held.num_new = [], 0

    def events(self) -> list[dict[str, Any]]:
        told, self._events = list(self._events), deque()
        return told

    def lose_events(self) -> None:
        """As an overflow does: in silence."""
        self._events.clear()

    def _block(self, token_ids: Sequence[int], place: int, engine_hash: int, salt: str) -> dict[str, Any]:
        begin = place * self.block_size
        tokens = [{"token_id": each, "token_extra_id": 0} for each in token_ids[begin : begin + self.block_size]]
        return {"block_hash": engine_hash, "tokens": tokens, "cache_level": 0, "priority": 35, "cache_salt": salt}

    def _evict(self) -> None:
        """Cached blocks that nobody uses make room for those that are used: the last of the oldest chain first."""
        unused = [engine_hash for engine_hash, users in self._cached.items() if not users]
        over = self._used + len(unused) - self.num_blocks
        if over > 0:
            gone = list(reversed(unused))[-over:] if over < len(unused) else unused
            for engine_hash in gone:
                del self._cached[engine_hash]
            self._tell({"type": "removed", "block_hashes": gone})

    def _tell(self, data: dict[str, Any]) -> None:
        if not self._max_events:
            return
        self._events.append({"event_id": self._next_event, "window_size": 0, "data": data})
        self._next_event += 1
        while len(self._events) > self._max_events:
            self._events.popleft()
