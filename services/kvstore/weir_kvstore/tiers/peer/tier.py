"""Blocks that another kvstore has: it is asked, not indexed, and keeps its own rules."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, TypeVar

import grpc

from weir.kvstore.v1.kvstore_pb2 import GetStatsResponse
from weir_chassis.channel import Connect
from weir_chassis.clock import Clock
from weir_chassis.errors import WeirError
from weir_chassis.fault_table import Fault
from weir_chassis.status import from_rpc_error
from weir_chassis.store_link import Refused, StoreLink
from weir_chassis.telemetry import get_logger
from weir_kvstore.bounds import MAX_CHAIN_BLOCKS
from weir_kvstore.checksum import matches
from weir_kvstore.hop import Arrivals
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.tier import Counters, TierReport
from weir_kvstore.tiers.peer.calls import PeerCalls
from weir_kvstore.tiers.removals import Removals
from weir_kvstore.tiers.together import Together

T = TypeVar("T")

_LOCAL_TIERS: Final = ("ram", "disk")  # what a peer answers from, and so what counts as held there
_STATS_SECONDS: Final = 5.0  # how old what is reported of the peer may be


@dataclass(frozen=True, slots=True)
class PeerPlace:
    address: str
    lookup_seconds: float = 0.25  # time limit of every call that moves no payload
    transfer_seconds: float = 2.0  # and of what moves some


class PeerTier:
    """A `Tier` (weir_kvstore/tier.py) over another store's contract."""

    def __init__(self, place: PeerPlace, connect: Connect, arrivals: Arrivals, *, clock: Clock, random: Random) -> None:
        """Connects when opened. `arrivals` came from a store, and are put into no other."""
        self._place, self._connect, self._arrivals = place, connect, arrivals
        self._clock, self._random = clock, random
        self._counters = Counters()
        self._link = StoreLink(self.name, (WeirError,), clock=clock, random=random)
        self._blocks = Together(self._fetch)
        self._removals = Removals(self._remove)
        self._calls: PeerCalls | None = None
        self._watching: asyncio.Task[None] | None = None
        self._held_blocks = self._held_bytes = self._capacity_bytes = 0  # as the peer last said

    @property
    def name(self) -> str:
        return "peer"

    @property
    def counters(self) -> Counters:
        return self._counters

    async def open(self) -> None:
        """Also when the peer is not there: it is asked again and again."""
        self._calls = PeerCalls(self._connect(self._place.address), 2 * self._place.transfer_seconds)
        self._watching = asyncio.create_task(self._watch(), name="watch-peer")

    async def match(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        wanted = self._removals.before(namespace, block_hashes[:MAX_CHAIN_BLOCKS])
        matched = await self._look(partial(self._peer.look, namespace, wanted), otherwise=0)
        self._counters.hits += matched
        self._counters.misses += len(block_hashes) - matched
        return matched

    async def get(self, address: Address) -> tuple[Record, Bytes] | None:
        block = None if address in self._removals else await self._blocks.get(address)
        if block is not None and not await matches(block[1], block[0].checksum):
            await self._quarantine(address)
            block = None
        if block is None:
            self._counters.misses += 1
            return None
        self._counters.read_bytes += block[0].size_bytes
        return block

    async def put(self, record: Record, payload: Bytes) -> bool:
        assert len(payload) == record.size_bytes, record
        if record.address in self._arrivals:
            self._counters.not_admitted += 1
            return False
        if record.address in self._removals:
            self._counters.refused += 1
            return False
        stored, held = await self._move(partial(self._put, record, payload), otherwise=(0, False))
        self._counters.stored += stored
        self._counters.written_bytes += stored * record.size_bytes
        self._counters.refused += not held
        return held

    async def remove(self, addresses: Iterable[Address]) -> int:
        return await self._removals.remove(addresses)

    async def remove_namespace(self, namespace: bytes) -> int:
        return await self._removals.remove_namespace(namespace)

    def report(self) -> TierReport:
        """Blocks and bytes are the peer's own, whoever put them there."""
        return TierReport(
            self.name,
            self._held_blocks,
            self._held_bytes,
            self._capacity_bytes,
            self._counters,
            fault=self._link.fault,
        )

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._blocks.close()
        if self._calls is not None:
            await self._calls.close()

    @property
    def _peer(self) -> PeerCalls:
        assert self._calls is not None, "the tier is opened first"
        return self._calls

    async def _watch(self) -> None:
        """For ever asks what the peer holds, which also finds out that it is back, and pays what is owed to it."""
        while True:
            self._note(await self._look(self._peer.stats, otherwise=None))
            await self._removals.pay()
            await self._clock.sleep(_STATS_SECONDS * (0.5 + self._random.random()))

    def _note(self, stats: GetStatsResponse | None) -> None:
        if stats is not None:
            tiers = [tier for tier in stats.tiers if tier.tier in _LOCAL_TIERS]
            self._held_blocks = sum(tier.blocks for tier in tiers)
            self._held_bytes = sum(tier.bytes for tier in tiers)
            self._capacity_bytes = sum(tier.capacity_bytes for tier in tiers)

    async def _remove(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int | None:
        """None: it was not confirmed."""
        return await self._look(partial(self._peer.remove, namespace, block_hashes), otherwise=None)

    async def _look(self, work: Callable[[], Awaitable[T]], *, otherwise: T) -> T:
        asking = partial(_asked, work)
        return await self._link.ask(asking, otherwise=otherwise, seconds=self._place.lookup_seconds)

    async def _move(self, work: Callable[[], Awaitable[T]], *, otherwise: T) -> T:
        asking = partial(_asked, work)
        return await self._link.ask(asking, otherwise=otherwise, seconds=self._place.transfer_seconds)

    async def _fetch(self, addresses: Sequence[Address]) -> Sequence[tuple[Record, Bytes] | None]:
        found: dict[Address, tuple[Record, Bytes]] = {}
        for namespace in dict.fromkeys(address.namespace for address in addresses):
            hashes = list(dict.fromkeys(each.block_hash for each in addresses if each.namespace == namespace))
            nothing: list[tuple[Record, Bytes]] = []
            blocks = await self._move(partial(self._peer.fetch, namespace, hashes), otherwise=nothing)
            found.update((block[0].address, block) for block in blocks)
        return [found.get(address) for address in addresses]

    async def _put(self, record: Record, payload: Bytes) -> tuple[int, bool]:
        """How many were stored, and whether it is held. What the peer has already is not sent."""
        if await self._peer.look(record.address.namespace, [record.address.block_hash]):
            return 0, True
        response = await self._peer.put(record, payload)
        self._link.took()
        return response.stored_blocks, bool(response.stored_blocks or response.present_blocks)

    async def _quarantine(self, address: Address) -> None:
        """What came is not what was put: the peer is to forget it, wherever it was damaged."""
        self._counters.corrupt += 1
        get_logger().error("block_quarantined", tier=self.name)
        await self.remove([address])


async def _asked(work: Callable[[], Awaitable[T]]) -> T:
    """Raises Refused where the peer answers and it is not its fault, as when it is busy."""
    try:
        return await work()
    except grpc.RpcError as error:
        ours = from_rpc_error(error)
        if ours.row.fault is Fault.SERVER:
            raise ours from error
        raise Refused(ours.message) from error
