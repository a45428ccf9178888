"""What is asked of a peer. Every call is marked as a store's, and bounded by its caller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf.duration_pb2 import Duration

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_chunk import BlockChunk, chunks
from weir.kvstore.v1.block_chunk_grpc import get_blocks, put_blocks
from weir.kvstore.v1.block_hash import join_hashes
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.channel import call_metadata, cancelling
from weir_chassis.errors import DataCorrupt
from weir_chassis.owed import Owed
from weir_kvstore import hop
from weir_kvstore.bounds import HASH_BYTES, MAX_PAYLOAD_BYTES
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.tiers.peer.pieces import Pieces

if TYPE_CHECKING:
    # The generated module has this name only for type checkers.
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub

# Giving a lease back is owed even to a store that is slow; it lapses by itself when this is too short.
_RELEASE_SECONDS: Final = 5.0
# What is asked for together is mostly one chain, and then once is enough; after a hole the rest is asked for again.
_MAX_MATCHES: Final = 4


class PeerCalls:
    """Raises grpc.RpcError, and DataCorrupt for an answer that is none."""

    def __init__(self, channel: grpc.aio.Channel, lease_seconds: float) -> None:
        """`lease_seconds`: longer than any read may take. So long a lease lasts whose answer was not waited for."""
        self._channel = channel
        self._lease = Duration()
        self._lease.FromTimedelta(timedelta(seconds=lease_seconds))
        self._stub: KvStoreServiceAsyncStub = KvStoreServiceStub(channel)
        self._get_blocks, self._put_blocks = get_blocks(channel), put_blocks(channel)
        self._releases = Owed("release-peer-lease")

    async def look(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        """How many leading blocks the peer has. Leases none."""
        request = pb.MatchPrefixRequest(
            namespace=namespace, block_hashes=join_hashes(block_hashes), lease_duration=Duration()
        )
        response = await self._stub.MatchPrefix(request, metadata=_metadata())
        return min(response.matched_blocks, len(block_hashes))

    async def fetch(self, namespace: bytes, block_hashes: Sequence[bytes]) -> list[tuple[Record, Bytes]]:
        """Those of these blocks that the peer has, not verified yet."""
        blocks: list[tuple[Record, Bytes]] = []
        rest = block_hashes
        for _ in range(_MAX_MATCHES):
            if not rest:
                break
            matched, found = await self._fetch_leading(namespace, rest)
            blocks += found
            rest = rest[matched + 1 :]
        return blocks

    async def put(self, record: Record, payload: Bytes) -> pb.PutBlocksResponse:
        return await self._put_blocks(_parts(record, payload), metadata=_metadata())

    async def remove(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        """None named: all of the namespace."""
        request = pb.RemoveBlocksRequest(namespace=namespace, block_hashes=join_hashes(block_hashes))
        return (await self._stub.RemoveBlocks(request, metadata=_metadata())).removed_blocks

    async def stats(self) -> pb.GetStatsResponse:
        return await self._stub.GetStats(pb.GetStatsRequest(), metadata=_metadata())

    async def close(self) -> None:
        """Leases are given back as far as that goes within a moment; then they lapse."""
        await self._releases.close()
        await self._channel.close()

    async def _fetch_leading(
        self, namespace: bytes, block_hashes: Sequence[bytes]
    ) -> tuple[int, list[tuple[Record, Bytes]]]:
        """How many leading blocks the peer said it has, and those that came."""
        request = pb.MatchPrefixRequest(
            namespace=namespace, block_hashes=join_hashes(block_hashes), lease_duration=self._lease, with_records=True
        )
        match = await self._stub.MatchPrefix(request, metadata=_metadata())
        if not match.HasField("lease_id"):
            return 0, []
        try:
            addresses = [Address(namespace, block_hash) for block_hash in block_hashes[: match.matched_blocks]]
            records = [_record(*pair) for pair in zip(addresses, match.records, strict=False)]
            return len(addresses), await self._read(match.lease_id, records)
        finally:
            self._releases.start(self._release(match.lease_id))

    async def _read(self, lease_id: str, records: Sequence[Record]) -> list[tuple[Record, Bytes]]:
        pieces = Pieces(records)
        request = pb.GetBlocksRequest(lease_id=lease_id, max_blocks=len(records))
        with cancelling(self._get_blocks(request, metadata=_metadata())) as call:
            async for piece in call:
                if not isinstance(piece, BlockChunk):
                    raise DataCorrupt("the peer sent places where chunks were asked for")
                pieces.add(piece)
        return pieces.blocks()

    async def _release(self, lease_id: str) -> None:
        try:
            request = pb.ReleaseLeaseRequest(lease_id=lease_id)
            await self._stub.ReleaseLease(request, timeout=_RELEASE_SECONDS, metadata=_metadata())
        except grpc.RpcError:
            pass  # it lapses


def _metadata() -> tuple[tuple[str, str], ...]:
    return (*call_metadata(), *hop.MARK)


def _record(address: Address, said: pb.BlockRecord) -> Record:
    """Raises DataCorrupt for sizes that no store may have."""
    if not 0 < said.payload_bytes <= MAX_PAYLOAD_BYTES or len(said.parent_block_hash) not in (0, HASH_BYTES):
        raise DataCorrupt(
            f"the peer has a block of {said.payload_bytes} bytes; the limits are 1 and {MAX_PAYLOAD_BYTES}"
        )
    return Record(address, said.parent_block_hash, said.payload_bytes, said.checksum, said.tenant, said.prefill_seconds)


async def _parts(record: Record, payload: Bytes) -> AsyncIterator[BlockChunk | pb.PutBlocksRequest]:
    begin = pb.PutBegin(
        namespace=record.address.namespace, tenant=record.tenant, prefill_seconds_per_block=record.prefill_seconds
    )
    yield pb.PutBlocksRequest(begin=begin)
    for chunk in chunks(payload, record.address.block_hash, record.parent_block_hash, checksum=record.checksum):
        yield chunk
    yield pb.PutBlocksRequest(commit=pb.PutCommit())
