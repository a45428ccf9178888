"""The server's block events → ours, chained over the tokens that they tell. Pure.

A chain's scope is the salt among its first block's keys, or that of the request that is named, or, where the server
knows no salts, the one scope that there is; otherwise it is nobody's. A gap in a rank's numbers makes all void.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Final

from weir.openengine.v1 import openengine_pb2 as pb
from weir_executor.foreign.block_names import BlockNames
from weir_executor.foreign.salts import scope_of
from weir_executor.step_output import KvEvent

# Requests whose scope is remembered: events come within steps of the request that made them.
_MAX_REQUESTS: Final = 4096
# Beyond these it is not the engine that holds a block.
_MEDIA: Final = (
    pb.STORAGE_MEDIUM_GPU,
    pb.STORAGE_MEDIUM_UNSPECIFIED,
    pb.STORAGE_MEDIUM_CPU_PINNED,
    pb.STORAGE_MEDIUM_DISK,
)


class EventTranslator:
    """All ranks' events, each rank's in the order of its numbers. `only_scope`: of a server that knows no salts."""

    def __init__(self, block_size: int, only_scope: bytes | None) -> None:
        self.names = BlockNames(block_size)
        self._block_size, self._only_scope = block_size, only_scope
        self._scopes: OrderedDict[str, bytes] = OrderedDict()
        self._next: dict[int, int] = {}
        self.gaps = 0

    def note_request(self, request_id: str, scope: bytes) -> None:
        """Whose blocks are whose, for servers that tell of requests and not of salts. Empty: nobody else's."""
        self._scopes[request_id] = scope
        if len(self._scopes) > _MAX_REQUESTS:
            self._scopes.popitem(last=False)

    def begin(self) -> list[KvEvent]:
        """A new stream: what was known is void, and its numbers are its own."""
        self._next.clear()
        return self.names.clear() if len(self.names) else []

    def translate(self, batch: pb.KvEventBatch) -> list[KvEvent]:
        events: list[KvEvent] = []
        number, rank = batch.sequence_number, batch.data_parallel_rank
        if self._next.get(rank, number) != number:
            self.gaps += 1
            events += self.names.clear()
        self._next[rank] = number + 1
        for event in batch.events:
            match event.WhichOneof("event"):
                case "block_stored":
                    events += self._stored(rank, event.request_id, event.block_stored)
                case "block_removed":
                    events += self.names.remove(_keys(rank, event.block_removed))
                case "all_blocks_cleared":
                    events += self.names.clear()
        return events

    def _stored(self, rank: int, request_id: str, stored: pb.BlockStored) -> list[KvEvent]:
        if stored.kv_cache_spec_sliding_window or stored.medium not in _MEDIA or stored.block_size != self._block_size:
            return []  # of layers that remember less, or held by somebody else, or of another size
        size, tokens = self._block_size, stored.token_ids
        chunks = [tokens[begin : begin + size] for begin in range(0, len(tokens), size)]
        blocks = list(zip(_keys(rank, stored), chunks, strict=False))
        if stored.HasField("parent_block_hash"):
            parent = self._find(rank, stored)
            return [] if parent is None else self.names.store(blocks, parent=parent)
        root = self._root(request_id, stored)
        return self.names.store(blocks, root=root) if root else []

    def _find(self, rank: int, stored: pb.BlockStored) -> bytes | None:
        """Ours of its parent, on whichever medium that lies."""
        parent = stored.parent_block_hash
        keys = (_key(rank, medium, stored.group_idx, parent) for medium in _MEDIA)
        return next((found for key in keys if (found := self.names.find(key)) is not None), None)

    def _root(self, request_id: str, stored: pb.BlockStored) -> bytes | None:
        if self._only_scope is not None:
            return None if stored.lora_name or stored.lora_id else self._only_scope
        values: Iterable[str] = stored.extra_keys[0].values if stored.extra_keys else ()
        salts = (scope_of(value) for value in values)
        return next((scope for scope in salts if scope is not None), self._scopes.get(request_id))


def _keys(rank: int, event: pb.BlockStored | pb.BlockRemoved) -> list[Hashable]:
    return [_key(rank, event.medium, event.group_idx, each) for each in event.block_hashes]


def _key(rank: int, medium: int, group: int, block_hash: pb.KvBlockHash) -> Hashable:
    return rank, medium, group, block_hash.encoding, block_hash.value
