"""The disk tier's sequential read beside what the disk gives, over the same file: fio, and a loop of `preadv`.

The loop does with O_DIRECT what fio does as it is called here, and stands for it where there is none; the bench says so
where it prints.
All read the same bytes, none of them from the page cache, the tier right after each of the others. The tier reads as a
long prompt's chain is read: into one arena, some tens of MiB of neighbouring blocks under way at a time.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final, TypeAlias

from bench.report import Figures
from weir_chassis.clock import SystemClock
from weir_kvstore.record import Address, Record
from weir_kvstore.tiers.disk import SegmentSlots

MIB: Final = 1024 * 1024
_REQUEST_BYTES: Final = 8 * MIB
_UNDER_WAY_BYTES: Final = 32 * MIB
_GOAL: Final = 0.8
_FIO: Final = ("--rw=read", "--bs=8M", "--direct=1", "--ioengine=psync", "--readonly")
_NO_FIO: Final = "not installed: preadv of 8 MiB with O_DIRECT over the same file is its --rw=read --bs=8M --direct=1"
_FIO_SECONDS: Final = 60.0  # nothing here takes as long
# A virtual disk that was not used for a moment gives more, and fio needs one to start: all begin after one.
_REST_SECONDS: Final = 0.3


_Pairs: TypeAlias = list[tuple[float, float]]  # rates in bytes per second: the limit's, and right after it the tier's


def measure(scratch: Path, *, total_bytes: int = 512 * MIB, block_bytes: int = MIB, rounds: int = 7) -> Figures:
    """Ratios, their goals, and all rates in GB/s; `scratch` says which disk. Takes some twenty seconds."""
    direct, fio = asyncio.run(_rates(scratch / "disk-tier", total_bytes // block_bytes, block_bytes, rounds))
    figures = Figures()
    no_direct = f"{scratch} is on a file system without O_DIRECT"
    for name, pairs, why_not in (
        ("O_DIRECT", direct, no_direct),
        ("fio", fio, _why_no_fio() if direct else no_direct),
    ):
        ratio = f"disk tier / {name}, blocks of {block_bytes // 1024} KiB"
        if not pairs:
            figures.missing[ratio] = why_not
            continue
        limits, tiers = zip(*pairs, strict=True)
        measured = {
            f"disk with {name}, GB/s": median(limits) / 1e9,
            f"disk tier beside {name}, GB/s": median(tiers) / 1e9,
        }
        figures.update(Figures({ratio: median(tier / limit for limit, tier in pairs)}, {ratio: _GOAL}, measured))
    return figures


async def _rates(path: Path, num_blocks: int, block_bytes: int, rounds: int) -> tuple[_Pairs, _Pairs]:
    """Beside O_DIRECT, and beside fio."""
    slots, pairs = SegmentSlots(path, 2 * num_blocks * block_bytes, SystemClock()), (_Pairs(), _Pairs())
    await slots.recover()
    try:
        await _fill(slots, num_blocks, block_bytes)
        (segment,) = path.glob("segment-*")
        for _ in range(rounds):
            for found, read in zip(pairs, (_read_direct, _read_with_fio), strict=True):
                await asyncio.sleep(_REST_SECONDS)
                if (limit := await asyncio.to_thread(read, segment)) is not None:
                    await asyncio.sleep(_REST_SECONDS)
                    found.append((limit, await _read_all(slots, segment, num_blocks, block_bytes)))
        return pairs
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


def _read_with_fio(segment: Path) -> float | None:
    """None: there is no fio here, or no O_DIRECT."""
    program = shutil.which("fio")
    if program is None:
        return None
    _forget_cached(segment)
    command = [program, "--name=read", f"--filename={segment}", *_FIO, "--output-format=json"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=_FIO_SECONDS)
    if done.returncode:
        return None
    return float(json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"])


def _why_no_fio() -> str:
    return _NO_FIO if shutil.which("fio") is None else "it is installed, and ended with an error"


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
