"""Blocks by reference between two processes, beside one memcpy of as many bytes between two buffers of one process."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from bench.kvstore import processes
from bench.kvstore.blocks import BLOCK_BYTES, KIB, MIB, clear, load, make_blocks, put, size_of
from bench.report import Figures
from weir_chassis.channel import open_channel
from weir_chassis.clock import SystemClock
from weir_chassis.mapped_memory import MappedMemory, private_memory
from weir_executor.kv_transfer.arena_transport import ArenaTransport
from weir_executor.kv_transfer.copier import load_copier

_TOTAL_BYTES = 368 * MIB  # a prefix of a thousand blocks of the measured model
_ROUNDS = 7
_GOAL = 0.8


async def measure(scratch: Path) -> Figures:
    figures = Figures()
    for block_bytes in BLOCK_BYTES:
        figures.update(await _measure(scratch, block_bytes))
    return figures


async def _measure(scratch: Path, block_bytes: int) -> Figures:
    source, target = _touched(_TOTAL_BYTES), _touched(_TOTAL_BYTES)
    capacity = _TOTAL_BYTES * 9 // 8
    loads: list[float] = []
    puts: list[float] = []
    copies: list[float] = []
    async with (
        processes.store(scratch, capacity_bytes=capacity, max_staged_bytes=capacity) as address,
        open_channel(address) as channel,
    ):
        transport = ArenaTransport(channel, SystemClock(), load_copier())
        for _ in range(_ROUNDS + 2):  # in the first two the arena is touched and mapped
            blocks = make_blocks(_TOTAL_BYTES, block_bytes)
            puts.append(size_of(blocks) / await put(transport, blocks))
            copies.append(_copy(source, target, size_of(blocks)))
            loads.append(size_of(blocks) / await load(transport, blocks))
            await clear(channel)
        await transport.close()
    return _figures(f"blocks of {block_bytes // KIB} KiB", loads[2:], puts[2:], copies[2:])


def _figures(what: str, loads: list[float], puts: list[float], copies: list[float]) -> Figures:
    hit, stored = f"RAM hit by reference / memcpy, {what}", f"put by reference / memcpy, {what}"
    return Figures(
        {hit: _ratio(loads, copies), stored: _ratio(puts, copies)},
        {hit: _GOAL},
        {
            f"memcpy, GB/s, {what}": median(copies) / 1e9,
            f"RAM hit by reference, GB/s, {what}": median(loads) / 1e9,
            f"put by reference, GB/s, {what}": median(puts) / 1e9,
        },
    )


def _ratio(ours: list[float], limits: list[float]) -> float:
    return median(a / b for a, b in zip(ours, limits, strict=True))


def _touched(size_bytes: int) -> MappedMemory:
    memory = private_memory(size_bytes)
    memory.view()[:] = bytes([1]) * size_bytes
    return memory


def _copy(source: MappedMemory, target: MappedMemory, size_bytes: int) -> float:
    """Bytes per second."""
    began = time.perf_counter()
    target.copy_from(0, source, 0, size_bytes)
    return size_bytes / (time.perf_counter() - began)
