"""How much of a prompt each executor is believed to hold: what it has said, and what it was just given."""

from __future__ import annotations

from collections.abc import Sequence

from weir.inference.v1.kv_event_pb2 import KvEvent
from weir.kvstore.v1.block_hash import split_hashes
from weir_chassis.kv_events.wire import Source
from weir_router.prefixes.index import PrefixIndex
from weir_router.prefixes.routed import RoutedPrefixes


class Prefixes:
    """A `kv_events.follower.Consumer`. `now` is in monotonic seconds."""

    def __init__(self, index: PrefixIndex, routed: RoutedPrefixes) -> None:
        self.index, self._routed = index, routed

    def cached_tokens(self, block_hashes: bytes, block_size: int, now: float) -> dict[str, int]:
        """Leading tokens by address: of whoever has said what it holds, or was just given the like of it."""
        hashes = split_hashes(block_hashes)
        blocks = self.index.leading_blocks(hashes)
        for address, count in self._routed.leading_blocks(hashes, now):
            blocks[address] = max(count, blocks.get(address, 0))
        return {address: count * block_size for address, count in blocks.items()}

    def note_routed(self, address: str, block_hashes: bytes, now: float) -> None:
        self._routed.note(address, block_hashes, now)

    def reset(self, source: Source) -> None:
        self.index.reset(source)

    def apply(self, source: Source, events: Sequence[KvEvent]) -> None:
        self.index.apply(source, events)

    def lost(self, source: Source) -> None:
        self.index.lost(source)
        self._routed.lost(source.name)
