"""The disk tier's sequential read beside what the disk gives: a loop of `preadv` with O_DIRECT over the same file.

It stands for `fio --rw=read --bs=8M --direct=1 --ioengine=psync`, which does the same; the bench says so where it
prints.
Both read the same bytes, none of them from the page cache, in turns. The tier reads as a long prompt's chain is read:
into one arena, some tens of MiB of neighbouring blocks under way at a time.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from bench.report import Figures
from weir_chassis.clock import SystemClock
from weir_kvstore.record import Address, Record
from weir_kvstore.tiers.disk import SegmentSlots

MIB: Final = 1024 * 1024
_REQUEST_BYTES: Final = 8 * MIB
_UNDER_WAY_BYTES: Final = 32 * MIB
_GOAL: Final = 0.8
_NO_FIO: Final = "not run: preadv of 8 MiB with O_DIRECT over the same file is its --rw=read --bs=8M --direct=1"


def measure(scratch: Path, *, total_bytes: int = 512 * MIB, block_bytes: int = MIB, rounds: int = 5) -> Figures:
    """Ratio, its goal, and both rates in GB/s; `scratch` says which disk. Takes some seconds."""
    tier, limit = asyncio.run(_rates(scratch / "disk-tier", total_bytes // block_bytes, block_bytes, rounds))
    name = f"disk tier / O_DIRECT, blocks of {block_bytes // 1024} KiB"
    if limit is None:
        return Figures(missing={name: f"{scratch} is on a file system without O_DIRECT"})
    measured = {"disk tier, GB/s": tier / 1e9, "disk with O_DIRECT, GB/s": limit / 1e9}
    return Figures({name: tier / limit}, {name: _GOAL}, measured, {"fio": _NO_FIO})


async def _rates(path: Path, num_blocks: int, block_bytes: int, rounds: int) -> tuple[float, float | None]:
    """Bytes per second, the medians of so many rounds."""
    slots = SegmentSlots(path, 2 * num_blocks * block_bytes, SystemClock())
    await slots.recover()
    try:
        await _fill(slots, num_blocks, block_bytes)
        (segment,) = path.glob("segment-*")
        tier: list[float] = []
        limit: list[float] = []
        for _ in range(rounds):
            direct = await asyncio.to_thread(_read_direct, segment)
            if direct is None:
                return 0.0, None
            limit.append(direct)
            tier.append(await _read_all(slots, segment, num_blocks, block_bytes))
        return median(tier), median(limit)
    finally:
        await slots.close()


async def _fill(slots: SegmentSlots, num_blocks: int, block_bytes: int) -> None:
    payload = memoryview(os.urandom(block_bytes + num_blocks))
    for number in range(num_blocks):
        assert slots.claim(number, block_bytes)
        await slots.write(number, 0, payload[number : number + block_bytes])
        address = Address(bytes(16), number.to_bytes(16, "big"))
        await slots.commit(number, Record(address, b"", block_bytes, checksum=0))


async def _read_all(slots: SegmentSlots, segment: Path, num_blocks: int, block_bytes: int) -> float:
    arena = memoryview(mmap.mmap(-1, 2 * _UNDER_WAY_BYTES))
    arena[:] = bytes(len(arena))  # touched, as the store's is
    window = max(1, _UNDER_WAY_BYTES // block_bytes)

    async def read_window(first: int) -> None:
        at = first // window % 2 * window * block_bytes
        numbers = range(first, min(first + window, num_blocks))
        into = [arena[at + i * block_bytes : at + (i + 1) * block_bytes] for i in range(len(numbers))]
        await asyncio.gather(*(slots.read_into(n, 0, view) for n, view in zip(numbers, into, strict=True)))

    _forget_cached(segment)
    started = time.perf_counter()
    before: asyncio.Task[None] | None = None
    for first in range(0, num_blocks, window):
        task = asyncio.create_task(read_window(first))
        if before is not None:
            await before
        before = task
    if before is not None:
        await before
    return num_blocks * block_bytes / (time.perf_counter() - started)


def _read_direct(segment: Path) -> float | None:
    """None: there is no O_DIRECT here."""
    _forget_cached(segment)
    try:
        fd = os.open(segment, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    try:
        return _rate(lambda offset, buffer: os.preadv(fd, [buffer], offset), segment.stat().st_size)
    finally:
        os.close(fd)


def _rate(read: Callable[[int, mmap.mmap], int], size_bytes: int) -> float:
    buffer = mmap.mmap(-1, _REQUEST_BYTES)
    buffer[:] = bytes(_REQUEST_BYTES)
    started, got = time.perf_counter(), 0
    for offset in range(0, size_bytes, _REQUEST_BYTES):
        got += read(offset, buffer)
    return got / (time.perf_counter() - started)


def _forget_cached(segment: Path) -> None:
    """What is not on disk yet goes there, and the kernel lets go of its copies."""
    fd = os.open(segment, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
