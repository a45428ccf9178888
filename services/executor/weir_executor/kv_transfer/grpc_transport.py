"""Blocks as chunks in messages: what every store can do, wherever it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration
from xxhash import xxh3_64_intdigest

from weir.kvstore.v1 import kvstore_pb2 as kv
from weir.kvstore.v1.block_chunk import BlockChunk, chunks
from weir.kvstore.v1.block_chunk_grpc import get_blocks, put_blocks
from weir.kvstore.v1.block_hash import join_hashes
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.errors import DataCorrupt
from weir_executor.kv_transfer.assembler import BlockAssembler
from weir_executor.kv_transfer.plan import TierRange
from weir_executor.kv_transfer.transport import Match, Payload, Put, PutResult
from weir_executor.step_output import FullBlock

if TYPE_CHECKING:
    # The generated module has this name only for type checkers.
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub

# Longer than a load takes. It is given back as soon as the load is over.
LEASE_SECONDS = 10.0
_LEASE = Duration(seconds=int(LEASE_SECONDS))


class GrpcTransport:
    """A `BlockTransport`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: KvStoreServiceAsyncStub = KvStoreServiceStub(channel)
        self._get_blocks, self._put_blocks = get_blocks(channel), put_blocks(channel)

    async def match(
        self, namespace: bytes, block_hashes: Sequence[bytes], *, skip_blocks: int, block_size: int, timeout: float
    ) -> Match:
        request = kv.MatchPrefixRequest(
            namespace=namespace,
            block_hashes=join_hashes(block_hashes),
            skip_blocks=skip_blocks,
            block_size=block_size,
            lease_duration=_LEASE,
        )
        response = await self._stub.MatchPrefix(request, timeout=timeout)
        return Match(
            response.matched_blocks,
            response.lease_id if response.HasField("lease_id") else None,
            [TierRange(each.blocks, each.tier) for each in response.ranges],
        )

    async def get(
        self, lease_id: str, wanted: Sequence[bytes], *, block_bytes: int, timeout: float
    ) -> AsyncGenerator[Sequence[Payload], None]:
        assembler = BlockAssembler(wanted, block_bytes)
        request = kv.GetBlocksRequest(lease_id=lease_id, max_blocks=len(wanted))
        call = self._get_blocks(request, timeout=timeout)
        try:
            async for piece in call:
                if not isinstance(piece, BlockChunk):
                    raise DataCorrupt("the kvstore sent places where chunks were asked for")
                if (block := assembler.add(piece)) is not None:
                    yield (block,)
                if assembler.done:
                    return
        finally:
            call.cancel()

    async def put(self, put: Put, *, timeout: float) -> PutResult:
        checksums = await asyncio.to_thread(_checksums, put.blocks)
        response = await self._put_blocks(_parts(put, checksums), timeout=timeout)
        return PutResult(
            response.stored_blocks, response.present_blocks, response.corrupt_blocks, response.refused_blocks
        )

    async def release(self, lease_id: str, *, timeout: float) -> None:
        await self._stub.ReleaseLease(kv.ReleaseLeaseRequest(lease_id=lease_id), timeout=timeout)

    async def close(self) -> None:
        """It holds nothing."""


def begin_of(put: Put) -> kv.PutBegin:
    return kv.PutBegin(
        namespace=put.namespace,
        tenant=put.tenant,
        block_size=put.block_size,
        prefill_seconds_per_block=put.prefill_seconds_per_block,
    )


def _checksums(blocks: Sequence[FullBlock]) -> list[int]:
    return [xxh3_64_intdigest(block.payload) for block in blocks]


async def _parts(put: Put, checksums: Sequence[int]) -> AsyncIterator[BlockChunk | kv.PutBlocksRequest]:
    yield kv.PutBlocksRequest(begin=begin_of(put))
    for block, checksum in zip(put.blocks, checksums, strict=True):
        for chunk in chunks(block.payload, block.block_hash, block.parent_block_hash, checksum=checksum):
            yield chunk
    yield kv.PutBlocksRequest(commit=kv.PutCommit())
