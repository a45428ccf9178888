"""What a watcher of KV events knows, of an executor or a store: the reading side of both contracts."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from weir.inference.v1.kv_event_pb2 import KvEvent
from weir.kvstore.v1.block_hash import split_hashes

_PATIENCE_SECONDS: Final = 20.0


class Place(NamedTuple):
    tier: str
    namespace: bytes
    block_hash: bytes


class Mirror:
    """Follows a `WatchKvEvents` call. Place → parent of all that is held."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.held: dict[Place, bytes] = {}
        self.epoch, self.sequence, self.resets = 0, 0, 0

    @property
    def hashes(self) -> set[bytes]:
        return {place.block_hash for place in self.held}

    async def read(self) -> None:
        message = await asyncio.wait_for(self.call.read(), _PATIENCE_SECONDS)
        assert hasattr(message, "epoch"), f"the watch ended: {await self.call.code()}"
        if self.epoch == message.epoch and message.events[0].WhichOneof("event") != "reset":
            assert message.sequence >= self.sequence + len(message.events), "numbers only grow"
        self.epoch, self.sequence = message.epoch, message.sequence
        for event in message.events:
            self._apply(event)

    async def until_held(self, hashes: Collection[bytes]) -> None:
        while not self.hashes.issuperset(hashes):
            await self.read()

    async def until_gone(self, hashes: Sequence[bytes]) -> None:
        while not self.hashes.isdisjoint(hashes):
            await self.read()

    def _apply(self, event: KvEvent) -> None:
        match event.WhichOneof("event"):
            case "reset":
                self.resets += 1
                self.held.clear()
            case "stored":
                hashes = split_hashes(event.stored.block_hashes)
                parents = [event.stored.parent_block_hash, *hashes[:-1]]
                places = [Place(event.stored.tier, event.stored.namespace, block_hash) for block_hash in hashes]
                self.held.update(zip(places, parents, strict=True))
            case "removed":
                for block_hash in split_hashes(event.removed.block_hashes):
                    self.held.pop(Place(event.removed.tier, event.removed.namespace, block_hash), None)
            case "cleared":
                self.held = {place: parent for place, parent in self.held.items() if place.tier != event.cleared.tier}
            case other:
                raise AssertionError(other)
