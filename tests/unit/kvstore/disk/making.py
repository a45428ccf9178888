"""What the disk tier's tests are made of: blocks that tell each other apart, and slots over a directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from unit.kvstore.making import address
from weir_chassis.clock import SystemClock
from weir_kvstore.checksum import checksum
from weir_kvstore.record import Record
from weir_kvstore.tier import Recovered
from weir_kvstore.tiers.disk import Fsync, Reads, SegmentSlots
from weir_kvstore.tiers.disk.files import Files

MIB = 1024 * 1024


def payload_of(number: int, size_bytes: int = 5000) -> bytes:
    """No two alike, nor any two pages within one."""
    word = number.to_bytes(4, "big")
    return b"".join(word + page.to_bytes(4, "big") for page in range(-(-size_bytes // 8)))[:size_bytes]


def record_of(number: int, payload: bytes, *, tenant: str = "tenant") -> Record:
    return Record(address(number), b"", len(payload), checksum(payload), tenant, 0.25)


@asynccontextmanager
async def opened(
    path: Path,
    capacity_bytes: int = 16 * MIB,
    *,
    fsync: Fsync = Fsync.NONE,
    reads: Reads = Reads.DIRECT,
    files: Files | None = None,
    clock: Any = None,
) -> AsyncIterator[tuple[SegmentSlots, list[Recovered]]]:
    slots = SegmentSlots(path, capacity_bytes, clock or SystemClock(), fsync=fsync, reads=reads, files=files)
    try:
        yield slots, list(await slots.recover())
        slots.check_integrity()
    finally:
        await slots.close()


async def put(slots: SegmentSlots, block_id: int, number: int, size_bytes: int = 5000) -> Record:
    """A whole block, committed."""
    payload = payload_of(number, size_bytes)
    assert slots.claim(block_id, size_bytes)
    half = size_bytes // 2
    await slots.write(block_id, 0, payload[:half])
    await slots.write(block_id, half, payload[half:])
    record = record_of(number, payload)
    await slots.commit(block_id, record)
    return record


async def held(slots: SegmentSlots, recovered: list[Recovered]) -> list[int]:
    """The numbers of the recovered blocks, in order, each of which must have its bytes."""
    numbers = []
    for found in recovered:
        number = int.from_bytes(found.record.address.block_hash, "big")
        payload = await slots.read(found.block_id, 0, found.record.size_bytes)
        assert payload == payload_of(number, found.record.size_bytes)
        assert found.record == record_of(number, bytes(payload))
        numbers.append(number)
    return numbers
