"""Requests checked and translated, results translated back. The limits are the contract's."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from google.protobuf.duration_pb2 import Duration

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_chunk import BlockChunk
from weir.kvstore.v1.block_hash import split_hashes
from weir_chassis.durations import seconds_of
from weir_chassis.errors import InvalidArgument
from weir_kvstore.block import Block
from weir_kvstore.bounds import (
    HASH_BYTES,
    MAX_CHAIN_BLOCKS,
    MAX_CHUNK_BYTES,
    MAX_LEASE_SECONDS,
    MAX_PAYLOAD_BYTES,
    MAX_TENANT_BYTES,
)
from weir_kvstore.inventory import SourceReport
from weir_kvstore.leases import Leased
from weir_kvstore.put import PutPiece
from weir_kvstore.reads import Piece
from weir_kvstore.staging import PutBegin, PutResult
from weir_kvstore.store import Match
from weir_kvstore.tenants import Quotas
from weir_kvstore.tier import TierReport
from weir_kvstore.tiers_config import TiersConfig

# Ours have 32; whatever is longer is nobody's, and would only be carried back in the error.
_MAX_ID_CHARS = 64


def namespace(value: bytes) -> bytes:
    return _hash("namespace", value)


def block_hashes(packed: bytes) -> list[bytes]:
    """At most 65536 of them."""
    if len(packed) % HASH_BYTES:
        raise InvalidArgument("block_hashes", f"{len(packed)} bytes are no whole number of {HASH_BYTES}-byte hashes")
    if len(packed) > MAX_CHAIN_BLOCKS * HASH_BYTES:
        raise InvalidArgument("block_hashes", f"{len(packed) // HASH_BYTES} blocks, the limit is {MAX_CHAIN_BLOCKS}")
    return split_hashes(packed)


def skip_blocks(value: int, num_blocks: int) -> int:
    if value > num_blocks:
        raise InvalidArgument("skip_blocks", f"{value} of {num_blocks} blocks")
    return value


def lease_id(value: str) -> str:
    return _id("lease_id", value, "as MatchPrefix gave it")


def reservation_id(value: str) -> str:
    return _id("reservation_id", value, "as ReserveBlocks gave it")


def block_hash(value: bytes) -> bytes:
    return _hash("block_hash", value)


def lease_seconds(duration: Duration) -> float:
    """0 to 60 s."""
    seconds = seconds_of(duration)
    if not 0 <= seconds <= MAX_LEASE_SECONDS:
        raise InvalidArgument("lease_duration", f"{seconds:g} s, the limit is {MAX_LEASE_SECONDS:g} s")
    return seconds


def put_begin(begin: pb.PutBegin) -> PutBegin:
    if len(begin.tenant.encode()) > MAX_TENANT_BYTES:
        raise InvalidArgument("begin.tenant", f"{len(begin.tenant.encode())} bytes, the limit is {MAX_TENANT_BYTES}")
    if not 0 <= begin.prefill_seconds_per_block < inf:
        raise InvalidArgument("begin.prefill_seconds_per_block", f"{begin.prefill_seconds_per_block}")
    return PutBegin(namespace(begin.namespace), begin.tenant, begin.block_size, begin.prefill_seconds_per_block)


def put_piece(chunk: BlockChunk) -> PutPiece:
    """One message's part of a block, its sizes in bounds and agreeing with one another."""
    piece = PutPiece(
        block_hash=_hash("chunk.block_hash", chunk.block_hash),
        parent_block_hash=chunk.parent_block_hash and _hash("chunk.parent_block_hash", chunk.parent_block_hash),
        payload_bytes=chunk.payload_bytes,
        checksum=chunk.checksum,
        offset=chunk.offset,
        chunk=chunk.chunk,
    )
    if not 0 < piece.payload_bytes <= MAX_PAYLOAD_BYTES:
        raise InvalidArgument("chunk.payload_bytes", f"{piece.payload_bytes}, the limits are 1 and {MAX_PAYLOAD_BYTES}")
    if not 0 < len(piece.chunk) <= MAX_CHUNK_BYTES:
        raise InvalidArgument("chunk.chunk", f"{len(piece.chunk)} bytes, the limits are 1 and {MAX_CHUNK_BYTES}")
    if piece.offset + len(piece.chunk) > piece.payload_bytes:
        raise InvalidArgument("chunk.offset", f"{len(piece.chunk)} bytes from {piece.offset} of {piece.payload_bytes}")
    return piece


def match_response(match: Match, described: Sequence[Leased] = ()) -> pb.MatchPrefixResponse:
    return pb.MatchPrefixResponse(
        matched_blocks=match.matched_blocks,
        lease_id=match.lease_id,
        leased_bytes=match.leased_bytes,
        ranges=[pb.MatchedRange(blocks=each.blocks, tier=each.tier) for each in match.ranges],
        records=[_block_record(each) for each in described],
    )


def put_response(result: PutResult) -> pb.PutBlocksResponse:
    return pb.PutBlocksResponse(
        stored_blocks=result.stored,
        present_blocks=result.present,
        corrupt_blocks=result.corrupt,
        refused_blocks=result.refused,
    )


def get_response(piece: Piece) -> BlockChunk:
    """Lent as the piece is: it is serialised before the next one is asked for."""
    return BlockChunk(
        block_hash=piece.record.address.block_hash,
        parent_block_hash=b"",
        payload_bytes=piece.record.size_bytes,
        offset=piece.offset,
        chunk=piece.chunk,
        checksum=piece.record.checksum,
    )


def tier_stats(report: TierReport) -> pb.TierStats:
    counters = report.counters
    return pb.TierStats(
        tier=report.tier,
        blocks=report.blocks,
        bytes=report.bytes,
        capacity_bytes=report.capacity_bytes,
        hits=counters.hits,
        misses=counters.misses,
        stored=counters.stored,
        evicted=counters.evicted,
        refused=counters.refused,
        corrupt=counters.corrupt,
        policy=report.policy,
        ttl=None if report.ttl_seconds is None else _duration(report.ttl_seconds),
        expired=counters.expired,
        promoted=counters.promoted,
        demoted=counters.demoted,
        dropped=counters.dropped,
        read_bytes=counters.read_bytes,
        written_bytes=counters.written_bytes,
        not_admitted=counters.not_admitted,
        fault=report.fault,
    )


def tenant_stats(report: TierReport, config: TiersConfig) -> list[pb.TenantStats]:
    """Whoever holds something there, by name."""
    quotas = next((config.quotas(tier.kind) for tier in config.tier if tier.kind == report.tier), Quotas())
    return [
        pb.TenantStats(tenant=tenant, tier=report.tier, bytes=size_bytes, max_bytes=quotas.of(tenant).max_bytes or 0)
        for tenant, size_bytes in sorted(report.tenant_bytes.items())
    ]


def source_stats(report: SourceReport) -> pb.SourceStats:
    return pb.SourceStats(source=report.source, blocks=max(0, report.blocks), age=_duration(report.age_seconds))


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _block_record(leased: Leased) -> pb.BlockRecord:
    """Of a block in a shared tier nothing is known yet."""
    if not isinstance(leased, Block):
        return pb.BlockRecord()
    record = leased.record
    return pb.BlockRecord(
        parent_block_hash=record.parent_block_hash,
        payload_bytes=record.size_bytes,
        checksum=record.checksum,
        tenant=record.tenant,
        prefill_seconds=record.prefill_seconds,
    )


def _id(field: str, value: str, origin: str) -> str:
    if not 0 < len(value) <= _MAX_ID_CHARS:
        raise InvalidArgument(field, f"{len(value)} characters; {origin}")
    return value


def _hash(field: str, value: bytes) -> bytes:
    if len(value) != HASH_BYTES:
        raise InvalidArgument(field, f"{len(value)} bytes, a hash has {HASH_BYTES}")
    return value
