"""The engine's events → ours: its 64-bit hashes are its own, ours are chained over the tokens that it tells. Pure.

A block is told of when it is whole, of the largest attention window, and under a salt that names a scope of ours: what
was computed without a scope is nobody else's. A gap in the numbers means that something was lost; then all is void.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from weir_executor.foreign.block_names import BlockNames
from weir_executor.foreign.salts import scope_of
from weir_executor.step_output import KvEvent


class EventTranslator:
    """Each rank's events come in the order of their numbers. With attention data parallelism there are several ranks,
    and each has blocks of its own; whatever one of them holds, the engine holds."""

    def __init__(self, block_size: int) -> None:
        self.names = BlockNames(block_size)
        self._next_ids: dict[int, int] = {}  # by rank
        self._window = 0
        self.gaps = 0

    def translate(self, event: Mapping[str, Any]) -> list[KvEvent]:
        """What is to be told of it; nothing of what is nobody else's business."""
        events: list[KvEvent] = []
        event_id, window = event.get("event_id"), event.get("window_size") or 0
        rank = event.get("attention_dp_rank") or 0
        if isinstance(event_id, int):
            if event_id != self._next_ids.get(rank, event_id):
                events += self._lose_all()
            self._next_ids[rank] = event_id + 1
        if window < self._window:
            return events  # of a layer that remembers less
        if window > self._window:
            events += self.names.clear() if self._window else []
            self._window = window
        data = event.get("data") or {}
        match data.get("type"):
            case "stored":
                events += self._stored(data, rank)
            case "removed":
                events += self.names.remove((rank, each) for each in data.get("block_hashes") or ())
        return events

    def _stored(self, data: Mapping[str, Any], rank: int) -> list[KvEvent]:
        told = data.get("blocks") or ()
        # What tokens alone do not name ends what has a name.
        plain = takewhile(lambda block: not block.get("mm_keys"), told)
        blocks = [((rank, block["block_hash"]), _tokens(block)) for block in plain]
        if (engine_hash := data.get("parent_hash")) is not None:
            parent = self.names.find((rank, engine_hash))
            return [] if parent is None else self.names.store(blocks, parent=parent)
        root = scope_of(told[0].get("cache_salt")) if told else None
        return [] if root is None else self.names.store(blocks, root=root)

    def _lose_all(self) -> list[KvEvent]:
        self.gaps += 1
        return self.names.clear()


def _tokens(block: Mapping[str, Any]) -> Sequence[int]:
    return [token["token_id"] if isinstance(token, Mapping) else token for token in block.get("tokens") or ()]
