"""A shared store as the tests of the Redis tier make it, spoil it, and look into it behind its back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any, cast

from redis.asyncio import Redis

from servers import RedisServer
from weir_chassis.clock import SystemClock
from weir_kvstore.checksum import checksum
from weir_kvstore.record import Address, Record
from weir_kvstore.tiers.redis.books import Rules
from weir_kvstore.tiers.redis.layout import Keys, member, text
from weir_kvstore.tiers.redis.tier import RedisPlace, RedisTier

KEYS = Keys("test")
NAMESPACE = b"n" * 16
KIB = 1024


@asynccontextmanager
async def opened(
    server: RedisServer,
    *,
    url: str = "",
    name: str = KEYS.name,
    seed: int = 1,
    seconds: float = 2.0,
    connections: int = 8,
    **rules: Any,
) -> AsyncIterator[RedisTier]:
    """A host's tier in the store of this name. `seconds` is the limit of each call; room for 256 blocks."""
    place = RedisPlace(url or server.url, name, seconds, seconds, connections)
    chosen = replace(Rules(256 * KIB), **rules)
    tier = RedisTier(place, chosen, clock=SystemClock(), random=Random(seed))
    await tier.open()
    try:
        yield tier
    finally:
        await tier.close()


def block_hash(number: int) -> bytes:
    return number.to_bytes(16, "big")


def hashes(*numbers: int) -> list[bytes]:
    return [block_hash(number) for number in numbers]


def block(number: int, parent: int = 0, *, size_bytes: int = KIB, tenant: str = "") -> tuple[Record, bytes]:
    """Payloads differ by their number; parent 0: at a chain's beginning."""
    payload = Random(number).randbytes(size_bytes)
    address = Address(NAMESPACE, block_hash(number))
    return Record(address, block_hash(parent) if parent else b"", size_bytes, checksum(payload), tenant, 0.5), payload


def key_of(number: int) -> str:
    return KEYS.block(block(number)[0].address)


def flip(server: RedisServer, address: Address, offset: int) -> None:
    """One bit of the value, from its end when negative."""
    key = KEYS.block(address)
    at = offset % int(server.command("STRLEN", key)[1:])
    byte = server.command("GETRANGE", key, str(at), str(at)).split(b"\r\n", 1)[1][0]
    server.command("SETRANGE", key, str(at), bytes([byte ^ 0x10]))


async def held(tier: RedisTier, numbers: Sequence[int]) -> list[int]:
    """Those of these blocks that can be had, each of them right."""
    got = await asyncio.gather(*(tier.get(block(number)[0].address) for number in numbers))
    for number, found in zip(numbers, got, strict=True):
        assert found is None or bytes(found[1]) == block(number, size_bytes=found[0].size_bytes)[1], number
    return [number for number, found in zip(numbers, got, strict=True) if found is not None]


@dataclass(frozen=True, slots=True)
class Books:
    """What the books say, read without the tier."""

    blocks: dict[str, int]  # by member, bytes charged
    tenants: dict[str, int]
    total: int
    order: list[str]  # the next to go first


async def audit(server: RedisServer, *, puts: int = 0) -> Books:
    """Every value is charged once, what is charged is there, and all sums are right; so many puts are unfinished."""
    async with Redis.from_url(server.url, protocol=2) as redis:
        values = set(KEYS.members([key async for key in redis.scan_iter(KEYS.blocks_of())]))
        books = _texts(await redis.hgetall(KEYS.books[0]))
        tally = {field: int(number) for field, number in _texts(await redis.hgetall(KEYS.books[1])).items()}
        order = [text(name) for name in cast("list[bytes]", await redis.zrange(KEYS.books[2], 0, -1))]
        entries = {name: entry.split(" ", 3) for name, entry in books.items() if not name.startswith("put:")}
        assert set(entries) == values == set(order)
        assert len(books) - len(entries) == puts
        sizes = {name: int(size) for name, (size, *_) in entries.items()}
        by_tenant = Counter[str]()
        for name, (_, _, _, tenant) in entries.items():
            by_tenant[tenant] += sizes[name]
            assert await redis.zscore(f"{KEYS.prefix}order:{tenant}", name) is not None, name
        if not puts:
            assert tally.get("bytes", 0) == sum(sizes.values())
            assert {f"tenant:{tenant}": size for tenant, size in by_tenant.items()} == {
                field: size for field, size in tally.items() if field.startswith("tenant:")
            }
        assert tally.get("blocks", 0) == len(sizes)
    return Books(sizes, dict(by_tenant), tally.get("bytes", 0), order)


def _texts(found: Mapping[bytes | str, bytes | str]) -> dict[str, str]:
    return {text(field): text(value) for field, value in found.items()}


def members(*numbers: int) -> list[str]:
    return [member(block(number)[0].address) for number in numbers]
