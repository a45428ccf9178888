"""Blocks by value through TCP between two processes, beside raw gRPC chunks and a bare socket between two."""

from __future__ import annotations

import asyncio
from pathlib import Path
from statistics import median

from bench.kvstore import processes
from bench.kvstore.blocks import BLOCK_BYTES, KIB, MIB, clear, load, make_blocks, put, size_of
from bench.kvstore.raw import receive_bytes, receive_messages
from bench.report import Figures
from weir_chassis.channel import open_channel
from weir_executor.kv_transfer.grpc_transport import GrpcTransport

_TOTAL_BYTES = 256 * MIB
_CHUNK_BYTES = 2 * MIB  # the contract's own limit
_ROUNDS = 5
_WANTED = 1.3e9  # bytes per second


async def measure(scratch: Path) -> Figures:
    figures = Figures()
    async with (
        processes.raw_server("grpc", _TOTAL_BYTES, _CHUNK_BYTES) as messages_port,
        processes.raw_server("socket", _TOTAL_BYTES, _CHUNK_BYTES) as bytes_port,
    ):
        for block_bytes in BLOCK_BYTES:
            figures.update(await _measure(scratch, block_bytes, messages_port, bytes_port))
    return figures


async def _measure(scratch: Path, block_bytes: int, messages_port: int, bytes_port: int) -> Figures:
    loads: list[float] = []
    puts: list[float] = []
    messages: list[float] = []
    bare: list[float] = []
    capacity = 2 * _TOTAL_BYTES
    async with (
        processes.store(scratch, capacity_bytes=capacity, max_staged_bytes=capacity, arena_dir="") as address,
        open_channel(address) as channel,
    ):
        transport = GrpcTransport(channel)
        for _ in range(_ROUNDS + 1):  # the first warms up
            blocks = make_blocks(_TOTAL_BYTES, block_bytes)
            puts.append(size_of(blocks) / await put(transport, blocks))
            messages.append(await receive_messages(messages_port))
            bare.append(await asyncio.to_thread(receive_bytes, bytes_port, _CHUNK_BYTES))
            loads.append(size_of(blocks) / await load(transport, blocks))
            await clear(channel)
    return _figures(f"blocks of {block_bytes // KIB} KiB", loads[1:], puts[1:], messages[1:], bare[1:])


def _figures(what: str, loads: list[float], puts: list[float], messages: list[float], bare: list[float]) -> Figures:
    wanted = f"across a socket / 1.3 GB/s, {what}"
    return Figures(
        {
            wanted: median(loads) / _WANTED,
            f"across a socket / raw gRPC chunks, {what}": median(a / b for a, b in zip(loads, messages, strict=True)),
            f"across a socket / bare socket, {what}": median(a / b for a, b in zip(loads, bare, strict=True)),
        },
        {wanted: 1.0},
        {
            f"across a socket, GB/s, {what}": median(loads) / 1e9,
            f"put across a socket, GB/s, {what}": median(puts) / 1e9,
            f"raw gRPC chunks, GB/s, {what}": median(messages) / 1e9,
            f"bare socket, GB/s, {what}": median(bare) / 1e9,
        },
    )
