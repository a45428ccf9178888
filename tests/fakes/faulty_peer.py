"""A real kvstore that fails, lies and stalls when it is told to, for those who have it as a peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Any

import grpc

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_chunk import BlockChunk
from weir.kvstore.v1.block_chunk_grpc import add_servicer_to_server
from weir_chassis.clock import SystemClock
from weir_chassis.errors import WeirError
from weir_chassis.kv_events.blocks import new_log
from weir_chassis.leases import LeaseLedger
from weir_chassis.server import Registration
from weir_chassis.testing import serve_on_loopback
from weir_kvstore import hop
from weir_kvstore.arena_put import ArenaPuts
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.put import Puts
from weir_kvstore.rules import Rules
from weir_kvstore.servicer import KvStoreServicer
from weir_kvstore.store import BlockStore, Bounds
from weir_kvstore.tier import Tier
from weir_kvstore.tiers.arena import ArenaSlots
from weir_kvstore.tiers_config import InForce, TiersConfig

_NAME = pb.DESCRIPTOR.services_by_name["KvStoreService"].full_name


@dataclass
class FaultyPeer:
    """The store, and what is wrong with it."""

    store: BlockStore
    arrivals: hop.Arrivals
    channel: grpc.aio.Channel | None = None
    error: WeirError | None = None  # what every call ends with
    stalled: bool = False
    spoilt: set[bytes] = field(
        default_factory=set
    )  # block hashes of which one bit arrives wrong, until they are removed
    calls: list[tuple[str, bool]] = field(default_factory=list)  # method, and whether it was marked as a store's

    def connect(self, _: str) -> grpc.aio.Channel:
        assert self.channel is not None, "it is served first"
        return self.channel

    async def enter(self, method: str, context: Any) -> None:
        self.calls.append((method, hop.is_marked(context)))
        while self.stalled:
            await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error


class _Servicer(KvStoreServicer):
    def __init__(self, peer: FaultyPeer) -> None:
        puts = Puts(peer.store, max_open=100, idle_seconds=10)
        ids = count(1)
        super().__init__(
            peer.store,
            puts,
            new_log(1, 100),
            peer.arrivals,
            arena_puts=ArenaPuts(peer.store, puts, new_id=lambda: f"reservation-{next(ids)}"),
            in_force=lambda: InForce(TiersConfig()),
            sources=list,
            default_lease_seconds=10,
        )
        self._peer = peer

    async def MatchPrefix(self, request: pb.MatchPrefixRequest, context: Any) -> pb.MatchPrefixResponse:
        await self._peer.enter("MatchPrefix", context)
        return await super().MatchPrefix(request, context)

    async def GetBlocks(self, request: pb.GetBlocksRequest, context: Any) -> AsyncIterator[BlockChunk]:  # type: ignore[override]
        await self._peer.enter("GetBlocks", context)
        async for piece in super().GetBlocks(request, context):
            assert isinstance(piece, BlockChunk), "nobody asks for places"
            if piece.block_hash in self._peer.spoilt:
                yield replace(piece, chunk=bytes([piece.chunk[0] ^ 1]) + bytes(piece.chunk[1:]))
            else:
                yield piece

    async def PutBlocks(self, request_iterator: Any, context: Any) -> pb.PutBlocksResponse:
        await self._peer.enter("PutBlocks", context)
        return await super().PutBlocks(request_iterator, context)

    async def RemoveBlocks(self, request: pb.RemoveBlocksRequest, context: Any) -> pb.RemoveBlocksResponse:
        await self._peer.enter("RemoveBlocks", context)
        hashes = [request.block_hashes[at : at + 16] for at in range(0, len(request.block_hashes), 16)]
        self._peer.spoilt.difference_update(hashes)
        return await super().RemoveBlocks(request, context)

    async def GetStats(self, request: pb.GetStatsRequest, context: Any) -> pb.GetStatsResponse:
        await self._peer.enter("GetStats", context)
        return await super().GetStats(request, context)


def make_store(
    *, capacity_bytes: int, ttl_seconds: float | None = None, slower: Sequence[Tier] = (), seed: int = 0
) -> BlockStore:
    ids, random = count(1), Random(seed)
    rules = Rules(max_blocks=1000, ttl_seconds=ttl_seconds)
    ram = LocalTier("ram", ArenaSlots(capacity_bytes), LeaseLedger(SystemClock()), random, rules)
    return BlockStore(ram, Bounds(100), random, new_lease_id=lambda: f"lease-{next(ids)}", slower=slower)


@asynccontextmanager
async def served(store: BlockStore, arrivals: hop.Arrivals | None = None) -> AsyncIterator[FaultyPeer]:
    """The store on a port of its own, for others and for the caller to open; closed at the end."""
    peer = FaultyPeer(store, arrivals or hop.Arrivals())
    async with serve_on_loopback(Registration(add_servicer_to_server, _Servicer(peer), _NAME)) as channel:
        peer.channel = channel
        try:
            yield peer
        finally:
            await store.close()
