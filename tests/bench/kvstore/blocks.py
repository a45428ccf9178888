"""Blocks as executors put and load them, through the transports that executors use."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import aclosing
from itertools import count

import grpc

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_executor.kv_transfer.transport import BlockTransport, Put
from weir_executor.step_output import FullBlock

KIB, MIB = 1024, 1024 * 1024
NAMESPACE = b"bench-namespace!"
# Of 16 tokens: of the measured model, and of one of some 10 GB.
BLOCK_BYTES = (368 * KIB, 2 * MIB)

_SECONDS = 60.0  # nothing here takes as long
_names = count(1)


def make_blocks(total_bytes: int, block_bytes: int) -> list[FullBlock]:
    """A chain that nobody has put yet, of bytes that do not repeat."""
    blocks: list[FullBlock] = []
    parent = b""
    for _ in range(total_bytes // block_bytes):
        name = next(_names).to_bytes(16, "big")
        blocks.append(FullBlock(b"scope", name, parent, os.urandom(block_bytes)))
        parent = name
    return blocks


def size_of(blocks: Sequence[FullBlock]) -> int:
    return sum(len(block.payload) for block in blocks)


async def put(transport: BlockTransport, blocks: Sequence[FullBlock], batch_bytes: int = 64 * MIB) -> float:
    """Seconds. In batches as an executor's writer makes them."""
    at_once = max(1, batch_bytes // len(blocks[0].payload))
    began = time.perf_counter()
    for start in range(0, len(blocks), at_once):
        batch = blocks[start : start + at_once]
        result = await transport.put(Put(NAMESPACE, batch), timeout=_SECONDS)
        assert result.stored == len(batch), result
    return time.perf_counter() - began


async def load(transport: BlockTransport, blocks: Sequence[FullBlock]) -> float:
    """Seconds from asking what is stored to having every block, verified and ours.

    Giving the lease back is not waited for by an executor either.
    """
    hashes = [block.block_hash for block in blocks]
    began, came = time.perf_counter(), 0
    match = await transport.match(NAMESPACE, hashes, skip_blocks=0, block_size=16, timeout=_SECONDS)
    assert match.lease_id is not None
    assert match.matched_blocks == len(blocks), match
    block_bytes = len(blocks[0].payload)
    async with aclosing(transport.get(match.lease_id, hashes, block_bytes=block_bytes, timeout=_SECONDS)) as payloads:
        async for some in payloads:
            came += len(some)
    seconds = time.perf_counter() - began
    await transport.release(match.lease_id, timeout=_SECONDS)
    assert came == len(blocks)
    return seconds


async def clear(channel: grpc.aio.Channel) -> None:
    """Whom the store's policy would rather keep is not what is measured."""
    await KvStoreServiceStub(channel).RemoveBlocks(pb.RemoveBlocksRequest(namespace=NAMESPACE))
