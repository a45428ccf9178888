"""A client that moves whole blocks by reference behind the stub's own methods, so that one suite checks both ways.

What is not a well-formed put of whole blocks goes by value, for there is no other way to say it.
"""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import grpc

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_hash import join_hashes, split_hashes
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub

if TYPE_CHECKING:
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub

_PIECE_BYTES = 2 * 1024 * 1024


class ReferenceStub:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: KvStoreServiceAsyncStub = KvStoreServiceStub(channel)
        self._arena: tuple[str, mmap.mmap] | None = None
        self.puts = self.gets = 0  # by reference

    def __getattr__(self, name: str) -> object:
        return getattr(self._stub, name)

    def PutBlocks(self, requests: Any = None, **options: Any) -> Any:
        if not isinstance(requests, Iterable):
            return self._stub.PutBlocks(requests, **options)
        messages = cast("list[pb.PutBlocksRequest]", list(requests))
        blocks = _whole_blocks(messages)
        if blocks is None:
            return self._stub.PutBlocks(iter(messages), **options)
        return self._put(messages[0].begin, blocks)

    async def GetBlocks(self, request: pb.GetBlocksRequest) -> AsyncIterator[pb.GetBlocksResponse]:
        arena_id, arena = await self._attached()
        self.gets += 1
        by_reference = pb.GetBlocksRequest(lease_id=request.lease_id, arena_id=arena_id)
        async for answer in self._stub.GetBlocks(by_reference):
            assert answer.HasField("placed"), "a store whose only tier is RAM has a place for every block"
            for piece in _pieces(answer.placed, arena):
                yield piece

    async def _put(self, begin: pb.PutBegin, blocks: Sequence[tuple[pb.PutChunk, bytes]]) -> pb.PutBlocksResponse:
        arena_id, arena = await self._attached()
        self.puts += 1
        reserved = await self._stub.ReserveBlocks(
            pb.ReserveBlocksRequest(
                arena_id=arena_id,
                begin=begin,
                block_hashes=join_hashes(chunk.block_hash for chunk, _ in blocks),
                parent_block_hashes=join_hashes(chunk.parent_block_hash or bytes(16) for chunk, _ in blocks),
                payload_bytes=[chunk.payload_bytes for chunk, _ in blocks],
                checksums=[chunk.checksum for chunk, _ in blocks],
            )
        )
        kinds = [place.WhichOneof("place") for place in reserved.places]
        for place, (_, payload) in zip(reserved.places, blocks, strict=True):
            if place.HasField("offset"):
                arena[place.offset : place.offset + len(payload)] = payload
        if not reserved.reservation_id:
            return pb.PutBlocksResponse(present_blocks=kinds.count("present"), refused_blocks=kinds.count("refused"))
        done = await self._stub.CommitBlocks(pb.CommitBlocksRequest(reservation_id=reserved.reservation_id))
        told = done.stored_blocks + done.present_blocks + done.corrupt_blocks
        return pb.PutBlocksResponse(
            stored_blocks=done.stored_blocks,
            present_blocks=done.present_blocks,
            corrupt_blocks=done.corrupt_blocks,
            refused_blocks=len(blocks) - told,
        )

    async def _attached(self) -> tuple[str, mmap.mmap]:
        if self._arena is None:
            found = await self._stub.AttachArena(pb.AttachArenaRequest())
            self._arena = found.arena_id, mapped(found)
        return self._arena


def mapped(found: pb.AttachArenaResponse) -> mmap.mmap:
    with open(found.path, "r+b") as file:
        return mmap.mmap(file.fileno(), found.size_bytes)


def _pieces(placed: pb.PlacedBlocks, arena: mmap.mmap) -> Iterable[pb.GetBlocksResponse]:
    columns = zip(
        split_hashes(placed.block_hashes), placed.offsets, placed.payload_bytes, placed.checksums, strict=True
    )
    for block_hash, start, size, checksum in columns:
        for offset in range(0, size, _PIECE_BYTES):
            yield pb.GetBlocksResponse(
                block_hash=block_hash,
                payload_bytes=size,
                offset=offset,
                chunk=arena[start + offset : start + min(size, offset + _PIECE_BYTES)],
                checksum=checksum,
            )


def _whole_blocks(messages: Sequence[pb.PutBlocksRequest]) -> list[tuple[pb.PutChunk, bytes]] | None:
    """Each block's first piece and its payload; None where this is no put of whole blocks."""
    kinds = [message.WhichOneof("part") for message in messages]
    if kinds[:1] != ["begin"] or kinds[-1:] != ["commit"] or kinds[1:-1] != ["chunk"] * (len(kinds) - 2):
        return None
    blocks: list[tuple[pb.PutChunk, bytes]] = []
    for message in messages[1:-1]:
        chunk = message.chunk
        if chunk.offset == 0:
            blocks.append((chunk, chunk.chunk))
            continue
        if not blocks or len(blocks[-1][1]) != chunk.offset or blocks[-1][0].block_hash != chunk.block_hash:
            return None
        blocks[-1] = blocks[-1][0], blocks[-1][1] + chunk.chunk
    whole = all(0 < len(payload) == chunk.payload_bytes and len(chunk.block_hash) == 16 for chunk, payload in blocks)
    return blocks if blocks and whole else None
