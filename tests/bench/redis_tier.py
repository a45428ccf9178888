"""The Redis tier beside a bare socket that pipelines the same commands to the same server, in turns.

The tier reads as a lease is read: 16 blocks asked for together, each verified. The bare socket receives into one buffer
and looks at nothing. A lookup of a thousand blocks goes through the tier's own path, the server included.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

from bench.report import Figures
from servers import RedisServer, redis_server
from weir_chassis.clock import SystemClock
from weir_kvstore.checksum import checksum
from weir_kvstore.record import Address, Record
from weir_kvstore.tiers.redis.books import Rules
from weir_kvstore.tiers.redis.layout import Keys
from weir_kvstore.tiers.redis.tier import RedisPlace, RedisTier

KIB: Final = 1024
MIB: Final = 1024 * KIB
_TOTAL_BYTES: Final = 128 * MIB
_TOGETHER: Final = 16
_ROUNDS: Final = 7
_CHAIN_BLOCKS: Final = 1000
_NAMESPACE: Final = bytes(16)
_KEYS: Final = Keys("bench")


async def measure(_: Path) -> Figures:
    """Ratios, rates in GB/s for blocks of 64 KiB and of 1 MiB, and a lookup in microseconds. Some 20 seconds."""
    figures = Figures()
    for block_bytes in (64 * KIB, MIB):
        with redis_server() as server:
            tier = RedisTier(
                RedisPlace(server.url, _KEYS.name, lookup_seconds=10, transfer_seconds=10),
                Rules(2 * _TOTAL_BYTES),
                clock=SystemClock(),
                random=Random(1),
            )
            await tier.open()
            figures.update(await _measure(tier, server, block_bytes))
            await tier.close()
    return figures


async def _measure(tier: RedisTier, server: RedisServer, block_bytes: int) -> Figures:
    records, payloads = _blocks(_TOTAL_BYTES // block_bytes, block_bytes)
    puts: list[float] = []
    gets: list[float] = []
    bare: list[float] = []
    for _ in range(_ROUNDS):
        await tier.remove_namespace(_NAMESPACE)
        puts.append(await _put_all(tier, records, payloads))
        bare.append(await asyncio.to_thread(_get_bare, server, records))
        gets.append(await _get_all(tier, records))
    what = f"blocks of {block_bytes // KIB} KiB"
    measured = {
        f"Redis, bare pipelined GET, GB/s, {what}": median(bare) / 1e9,
        f"Redis tier get, GB/s, {what}": median(gets) / 1e9,
        f"Redis tier put, GB/s, {what}": median(puts) / 1e9,
    }
    if len(records) >= _CHAIN_BLOCKS:
        measured[f"Redis tier, lookup of {_CHAIN_BLOCKS} blocks, µs"] = 1e6 * await _look(tier, records)
    ratio = median(ours / theirs for ours, theirs in zip(gets, bare, strict=True))
    return Figures({f"Redis tier / bare pipelined GET, {what}": ratio}, {}, measured)


def _blocks(count: int, block_bytes: int) -> tuple[list[Record], list[memoryview]]:
    noise = memoryview(os.urandom(block_bytes + count))
    payloads = [noise[number : number + block_bytes] for number in range(count)]
    hashes = [number.to_bytes(16, "big") for number in range(count)]
    parents = [b"", *hashes]
    return [
        Record(Address(_NAMESPACE, block_hash), parent, block_bytes, checksum(payload))
        for block_hash, parent, payload in zip(hashes, parents, payloads, strict=False)
    ], payloads


async def _put_all(tier: RedisTier, records: Sequence[Record], payloads: Sequence[memoryview]) -> float:
    """Bytes per second."""
    began = time.perf_counter()
    for start in range(0, len(records), _TOGETHER):
        pairs = zip(records[start : start + _TOGETHER], payloads[start : start + _TOGETHER], strict=True)
        assert all(await asyncio.gather(*(tier.put(record, payload) for record, payload in pairs)))
    return _TOTAL_BYTES / (time.perf_counter() - began)


async def _get_all(tier: RedisTier, records: Sequence[Record]) -> float:
    """Bytes per second, with the next ones on their way while one batch is looked at."""

    async def get(batch: Sequence[Record]) -> None:
        assert all(await asyncio.gather(*(tier.get(record.address) for record in batch)))

    began = time.perf_counter()
    before: asyncio.Task[None] | None = None
    for start in range(0, len(records), _TOGETHER):
        task = asyncio.create_task(get(records[start : start + _TOGETHER]))
        if before is not None:
            await before
        before = task
    if before is not None:
        await before
    return _TOTAL_BYTES / (time.perf_counter() - began)


def _get_bare(server: RedisServer, records: Sequence[Record]) -> float:
    """Bytes per second of the same values, headers and all."""
    keys = [_KEYS.block(record.address).encode() for record in records]
    size = int(server.command("STRLEN", keys[0])[1:])
    commands = [b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key) for key in keys]
    answer_bytes = len(b"$%d\r\n" % size) + size + 2
    buffer = bytearray(MIB)
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.connect(str(server.socket_path))
        began = time.perf_counter()
        for start in range(0, len(commands), _TOGETHER):
            batch = commands[start : start + _TOGETHER]
            connection.sendall(b"".join(batch))
            left = answer_bytes * len(batch)
            while left:
                left -= connection.recv_into(buffer, min(left, len(buffer)))
        return _TOTAL_BYTES / (time.perf_counter() - began)


async def _look(tier: RedisTier, records: Sequence[Record]) -> float:
    """Seconds, the median."""
    chain = [record.address.block_hash for record in records[:_CHAIN_BLOCKS]]
    took: list[float] = []
    for _ in range(50):
        began = time.perf_counter()
        assert await tier.match(_NAMESPACE, chain) == _CHAIN_BLOCKS
        took.append(time.perf_counter() - began)
    return median(took)
