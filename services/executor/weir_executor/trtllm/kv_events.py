"""The engine's events → ours: its 64-bit hashes are its own, ours are chained over the tokens that it tells. Pure.

A block is told of when it is whole, of the largest attention window, and under a salt that names a scope of ours: what
was computed without a scope is nobody else's. A gap in the numbers means that something was lost; then all is void.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from weir.kvstore.v1.block_hash import DIGEST_BYTES, block_hash
from weir_executor.engine import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent

# `cache_salt` of what shares blocks: the scope's root in hex. Others are private, and different for every request.
_SALT_CHARS: Final = 2 * DIGEST_BYTES


def shared_salt(cache_scope: bytes) -> str:
    return cache_scope.hex()


def private_salt(number: int) -> str:
    """One that no scope has."""
    return f"private-{number}"


@dataclass(frozen=True, slots=True)
class _Held:
    block_hash: bytes
    # The scope's root, when it is the first of its chain.
    root: bytes


class EventTranslator:
    """One rank's events, in the order of their numbers."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._next_id: int | None = None
        self._window = 0
        self._held: dict[int, _Held] = {}  # by the engine's hash; no more than its pool holds
        self._counts: dict[bytes, int] = {}  # of ours: the engine may keep one block twice, on two levels
        self.gaps = 0

    @property
    def hashes(self) -> frozenset[bytes]:
        """Of ours, those that it holds."""
        return frozenset(self._counts)

    def __contains__(self, found: bytes) -> bool:
        return found in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def translate(self, event: Mapping[str, Any]) -> list[KvEvent]:
        """What is to be told of it; nothing of what is nobody else's business."""
        events: list[KvEvent] = []
        event_id, window = event.get("event_id"), event.get("window_size") or 0
        if isinstance(event_id, int):
            if self._next_id is not None and event_id != self._next_id:
                events += self._lose_all()
            self._next_id = event_id + 1
        if window < self._window:
            return events  # of a layer that remembers less
        if window > self._window:
            events += self._clear() if self._window else []
            self._window = window
        data = event.get("data") or {}
        match data.get("type"):
            case "stored":
                events += self._stored(data)
            case "removed":
                events += self._removed(data.get("block_hashes") or ())
        return events

    def _stored(self, data: Mapping[str, Any]) -> list[KvEvent]:
        parent = self._parent(data)
        if parent is None:
            return []
        events: list[KvEvent] = []
        previous, told_parent = parent.block_hash, b"" if parent.root else parent.block_hash
        new: list[bytes] = []
        for block in data.get("blocks") or ():
            tokens = [token["token_id"] if isinstance(token, Mapping) else token for token in block.get("tokens") or ()]
            if len(tokens) != self._block_size or block.get("mm_keys"):
                break  # a part of a block, or one that tokens alone do not name: nothing after it has a name either
            previous = block_hash(previous, tokens)
            self._hold(block["block_hash"], previous)
            if self._count(previous):
                new.append(previous)
                continue
            if new:
                events.append(BlockStored(new, told_parent))
            new, told_parent = [], previous  # it was told of before, on another level
        if new:
            events.append(BlockStored(new, told_parent))
        return events

    def _parent(self, data: Mapping[str, Any]) -> _Held | None:
        """What the first of its blocks goes on after: a block, or a scope's root. None: nobody may know."""
        if (engine_hash := data.get("parent_hash")) is not None:
            held = self._held.get(engine_hash)
            return None if held is None else _Held(held.block_hash, b"")
        blocks = data.get("blocks") or ()
        salt = blocks[0].get("cache_salt") if blocks else None
        if not isinstance(salt, str) or len(salt) != _SALT_CHARS:
            return None
        try:
            root = bytes.fromhex(salt)
        except ValueError:
            return None
        return _Held(root, root)

    def _removed(self, engine_hashes: Sequence[int]) -> list[KvEvent]:
        gone = []
        for engine_hash in engine_hashes:
            held = self._held.pop(engine_hash, None)
            if held is not None and self._uncount(held.block_hash):
                gone.append(held.block_hash)
        return [BlockRemoved(gone)] if gone else []

    def _hold(self, engine_hash: int, ours: bytes) -> None:
        before = self._held.get(engine_hash)
        if before is not None:
            self._uncount(before.block_hash)
        self._held[engine_hash] = _Held(ours, b"")

    def _count(self, ours: bytes) -> bool:
        """Whether it is new."""
        self._counts[ours] = self._counts.get(ours, 0) + 1
        return self._counts[ours] == 1

    def _uncount(self, ours: bytes) -> bool:
        """Whether it is gone."""
        left = self._counts[ours] - 1
        if left:
            self._counts[ours] = left
            return False
        del self._counts[ours]
        return True

    def _lose_all(self) -> list[KvEvent]:
        self.gaps += 1
        return self._clear()

    def _clear(self) -> list[KvEvent]:
        self._held.clear()
        self._counts.clear()
        return [AllBlocksCleared()]
