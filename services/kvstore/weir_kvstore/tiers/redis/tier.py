"""Blocks in a Redis that hosts share: asked, not indexed, since others put into it too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, TypeVar

from redis.exceptions import RedisError, ResponseError

from weir_chassis.clock import Clock
from weir_chassis.redis import close_client, open_client
from weir_chassis.store_link import StoreLink
from weir_chassis.telemetry import get_logger
from weir_kvstore.checksum import matches
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.tier import Counters, TierReport
from weir_kvstore.tiers.redis.books import MAX_MEMBERS, Books, Rules
from weir_kvstore.tiers.redis.connection import connect_directly
from weir_kvstore.tiers.redis.fetch import fetch
from weir_kvstore.tiers.redis.layout import MAX_VALUE_BYTES, Keys, decode, encode, member
from weir_kvstore.tiers.redis.replies import Reply
from weir_kvstore.tiers.redis.upkeep import Upkeep
from weir_kvstore.tiers.removals import Removals
from weir_kvstore.tiers.together import Together

T = TypeVar("T")

# Looked for in one call, about a microsecond each on the server: a usual prompt in one round trip.
_WINDOW_BLOCKS: Final = 2048
# Gone through in one call when a namespace is removed, in a millisecond or so.
_SCANNED_KEYS: Final = 4096


@dataclass(frozen=True, slots=True)
class RedisPlace:
    url: str  # redis://, rediss:// or unix://, with its password; never logged
    name: str  # stores of the same name at the same server are one store; printable, without braces
    lookup_seconds: float = 0.25  # time limit of every call that moves no payload
    transfer_seconds: float = 2.0  # and of one that does: 64 MiB over a gigabit and some
    connections: int = 8


class RedisTier:
    """A `Tier` (weir_kvstore/tier.py) over a real Redis."""

    def __init__(self, place: RedisPlace, rules: Rules, *, clock: Clock, random: Random) -> None:
        """Connects when opened. Raises ValueError for a URL that is none."""
        self._place, self._random = place, random
        self._counters = Counters()
        self._keys = Keys(place.name)
        self._redis = open_client(place.url, connections=place.connections)
        connect_directly(self._redis)
        self._link = StoreLink(self.name, (RedisError,), clock=clock, random=random)
        self._books = Books(self._redis, self._keys, rules, self._counters)
        self._values = Together(self._fetch)
        self._removals = Removals(self._remove)
        self._upkeep = Upkeep(
            self._redis,
            self._link,
            self._books,
            self._keys,
            self._removals,
            seconds=place.lookup_seconds,
            clock=clock,
            random=random,
        )
        self._upkeep_task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return "redis"

    @property
    def counters(self) -> Counters:
        return self._counters

    def apply(self, rules: Rules) -> None:
        """These rules hold from now on; a lifetime only for what is put from now on."""
        self._books.rules = rules

    async def open(self) -> None:
        """Looks once what is there, and starts to look after it."""
        await self._upkeep.turn()
        self._upkeep_task = asyncio.create_task(self._upkeep.run(), name="redis-upkeep")

    async def match(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        wanted = self._removals.before(namespace, block_hashes)
        matched = await self._look(partial(self._match, namespace, wanted), otherwise=0)
        self._counters.hits += matched
        self._counters.misses += len(block_hashes) - matched
        self._upkeep.touch([member(Address(namespace, block_hash)) for block_hash in wanted[:matched]])
        return matched

    async def get(self, address: Address) -> tuple[Record, Bytes] | None:
        value = None if address in self._removals else await self._values.get(address)
        if value is None:
            self._counters.misses += 1
            return None
        block = decode(value, address)
        if block is None or not await matches(block[1], block[0].checksum):
            await self._quarantine(address)
            return None
        self._counters.read_bytes += block[0].size_bytes
        return block

    async def put(self, record: Record, payload: Bytes) -> bool:
        assert len(payload) == record.size_bytes, record
        putting = partial(self._put, record, payload)
        outcome = "refused"
        if record.address not in self._removals:
            outcome = await self._link.ask(putting, otherwise="lost", seconds=self._place.transfer_seconds)
        if outcome == "stored":
            self._link.took()
            self._counters.stored += 1
            self._counters.written_bytes += record.size_bytes
        elif outcome != "present":
            self._counters.refused += 1
        return outcome in ("stored", "present")

    async def remove(self, addresses: Iterable[Address]) -> int:
        return await self._removals.remove(addresses)

    async def remove_namespace(self, namespace: bytes) -> int:
        return await self._removals.remove_namespace(namespace)

    def report(self) -> TierReport:
        rules = self._books.rules
        return TierReport(
            self.name,
            self._books.blocks,
            self._books.bytes,
            rules.capacity_bytes,
            self._counters,
            policy=rules.policy,
            ttl_seconds=rules.ttl_seconds,
            fault=self._link.fault,
            tenant_bytes=dict(self._books.tenant_bytes),
        )

    async def close(self) -> None:
        if self._upkeep_task is not None:
            self._upkeep_task.cancel()
            await asyncio.gather(self._upkeep_task, return_exceptions=True)
        await self._values.close()
        await close_client(self._redis)

    async def _look(self, work: Callable[[], Awaitable[T]], *, otherwise: T) -> T:
        return await self._link.ask(work, otherwise=otherwise, seconds=self._place.lookup_seconds)

    async def _match(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        matched = 0
        while window := block_hashes[matched : matched + _WINDOW_BLOCKS]:
            found = await self._books.match(namespace, window)
            matched += found
            if found < len(window):
                break
        return matched

    async def _fetch(self, addresses: Sequence[Address]) -> Sequence[memoryview | None]:
        nothing: list[memoryview | None] = [None] * len(addresses)
        keys = [self._keys.block(address) for address in addresses]
        return await self._link.ask(partial(self._get, keys), otherwise=nothing, seconds=self._place.transfer_seconds)

    async def _get(self, keys: Sequence[str]) -> list[memoryview | None]:
        replies = await fetch(self._redis.connection_pool, keys, max_value_bytes=MAX_VALUE_BYTES)
        return [_value(reply) for reply in replies]

    async def _put(self, record: Record, payload: Bytes) -> str:
        """Charged before a byte of it is sent; sent only if it is wanted."""
        token = f"{self._random.getrandbits(128):032x}"
        outcome = await self._books.reserve(token, record)
        if outcome != "reserved":
            return outcome
        return await self._books.stage_and_commit(token, record, encode(record, payload))

    async def _remove(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int | None:
        """None: it was not confirmed."""
        if not block_hashes:
            return await self._remove_all(namespace)
        members = [member(Address(namespace, block_hash)) for block_hash in block_hashes]
        removed = 0
        for start in range(0, len(members), MAX_MEMBERS):
            count = await self._look(partial(self._books.remove, members[start : start + MAX_MEMBERS]), otherwise=None)
            if count is None:
                return None
            removed += count
        return removed

    async def _remove_all(self, namespace: bytes) -> int | None:
        """By going through all keys of the server, a bounded step per call."""
        removed, cursor = 0, -1
        while cursor:
            found = await self._look(partial(self._remove_found, namespace, max(0, cursor)), otherwise=None)
            if found is None:
                return None
            cursor, count = found
            removed += count
        return removed

    async def _remove_found(self, namespace: bytes, cursor: int) -> tuple[int, int]:
        """The next cursor, 0 at the end, and how many were removed."""
        pattern = self._keys.blocks_of(namespace)
        cursor, found = await self._redis.scan(cursor, match=pattern, count=_SCANNED_KEYS)
        members = self._keys.members(found)
        batches = [members[start : start + MAX_MEMBERS] for start in range(0, len(members), MAX_MEMBERS)]
        return cursor, sum([await self._books.remove(batch) for batch in batches])

    async def _quarantine(self, address: Address) -> None:
        """What is under this key is not the block: nobody shall find it again."""
        self._counters.misses += 1
        self._counters.corrupt += 1
        get_logger().error("block_quarantined", tier=self.name)
        await self._removals.remove([address])


def _value(reply: Reply) -> memoryview | None:
    """What a key holds; a list, a hash and the like are no block either. Raises what else the server says."""
    if not isinstance(reply, ResponseError):
        return reply
    if str(reply).startswith("WRONGTYPE"):
        return memoryview(b"")
    raise reply
