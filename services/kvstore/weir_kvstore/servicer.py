"""The contract's RPCs: checked, handed to the store, answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_chunk import BlockChunk
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceServicer
from weir_chassis.errors import Draining, InvalidArgument, NotFound, Unsupported
from weir_chassis.kv_events.blocks import KvEventLog, told
from weir_chassis.telemetry import current_request
from weir_kvstore import arena_mapping, hop, mapping
from weir_kvstore.arena_put import ArenaPuts
from weir_kvstore.arena_reads import place_lease, report_corrupt
from weir_kvstore.inventory import SourceReport
from weir_kvstore.put import Puts
from weir_kvstore.reads import Piece, read_lease
from weir_kvstore.record import Address
from weir_kvstore.store import BlockStore
from weir_kvstore.tiers.memory import SharedFile
from weir_kvstore.tiers_config import InForce, render


class UnknownArena(NotFound):
    """The store was started anew, and has another."""

    kind = "arena"


class KvStoreServicer(KvStoreServiceServicer):
    def __init__(
        self,
        store: BlockStore,
        puts: Puts,
        kv_events: KvEventLog,
        arrivals: hop.Arrivals,
        *,
        arena_puts: ArenaPuts,
        in_force: Callable[[], InForce],
        sources: Callable[[], Sequence[SourceReport]],
        default_lease_seconds: float,
        record: Callable[[pb.MatchPrefixRequest], None] | None = None,
    ) -> None:
        """`arrivals` learns what other stores put, `record` what is looked up here."""
        self._store = store
        self._in_force = in_force
        self._puts = puts
        self._arena_puts = arena_puts
        self._kv_events = kv_events
        self._arrivals = arrivals
        self._sources = sources
        self._record = record
        self._default_lease_seconds = default_lease_seconds

    async def MatchPrefix(self, request: pb.MatchPrefixRequest, context: Any) -> pb.MatchPrefixResponse:
        block_hashes = mapping.block_hashes(request.block_hashes)
        match = await self._store.match(
            mapping.namespace(request.namespace),
            block_hashes,
            skip_blocks=mapping.skip_blocks(request.skip_blocks, len(block_hashes)),
            seconds=self._lease_seconds(request),
            owner=_owner(),
            block_size=request.block_size,
            local_only=hop.is_marked(context),
        )
        if self._record is not None:
            self._record(request)
        if request.with_records and match.lease_id is not None:
            return mapping.match_response(match, self._store.leases.blocks(match.lease_id))
        return mapping.match_response(match)

    async def GetBlocks(  # type: ignore[override]  # chunks that are not copied, see `block_chunk`
        self, request: pb.GetBlocksRequest, _context: Any
    ) -> AsyncIterator[BlockChunk | pb.GetBlocksResponse]:
        lease_id = mapping.lease_id(request.lease_id)
        if request.arena_id:
            self._require_arena(request.arena_id)
        read = place_lease if request.arena_id else read_lease
        async with aclosing(read(self._store, lease_id, owner=_owner(), max_blocks=request.max_blocks)) as found:
            async for each in found:
                if isinstance(each, Piece):
                    yield mapping.get_response(each)
                else:
                    yield arena_mapping.placed_response(each, self._arena_puts.slots)

    async def PutBlocks(
        self, request_iterator: AsyncIterator[BlockChunk | pb.PutBlocksRequest], context: Any
    ) -> pb.PutBlocksResponse:
        from_store, namespace = hop.is_marked(context), b""
        async with self._puts.open(_owner()) as put:
            async for request in request_iterator:
                if isinstance(request, BlockChunk):
                    await put.add(mapping.put_piece(request))
                    if from_store:
                        self._arrivals.add(Address(namespace, request.block_hash))
                    continue
                match request.WhichOneof("part"):
                    case "begin":
                        begin = mapping.put_begin(request.begin)
                        put.begin(begin)
                        namespace = begin.namespace
                    case "commit":
                        return mapping.put_response(put.commit())
                    case _:
                        raise InvalidArgument("part", "is not set")
        return pb.PutBlocksResponse()

    async def RenewLease(self, request: pb.RenewLeaseRequest, _context: Any) -> pb.RenewLeaseResponse:
        seconds = self._lease_seconds(request)
        if not seconds:
            raise InvalidArgument("lease_duration", "a renewal is longer than zero; ReleaseLease gives a lease back")
        self._store.leases.renew(mapping.lease_id(request.lease_id), seconds)
        return pb.RenewLeaseResponse()

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, _context: Any) -> pb.ReleaseLeaseResponse:
        self._store.leases.release(mapping.lease_id(request.lease_id))
        return pb.ReleaseLeaseResponse()

    async def RemoveBlocks(self, request: pb.RemoveBlocksRequest, context: Any) -> pb.RemoveBlocksResponse:
        namespace = mapping.namespace(request.namespace)
        block_hashes = mapping.block_hashes(request.block_hashes) if request.block_hashes else None
        removed = await self._store.remove(namespace, block_hashes, local_only=hop.is_marked(context))
        return pb.RemoveBlocksResponse(removed_blocks=removed)

    async def GetStats(self, _request: pb.GetStatsRequest, _context: Any) -> pb.GetStatsResponse:
        reports = self._store.reports()
        in_force = self._in_force()
        return pb.GetStatsResponse(
            tiers=[mapping.tier_stats(report) for report in reports],
            tenants=[tenant for report in reports for tenant in mapping.tenant_stats(report, in_force.config)],
            saved_seconds=self._store.saved_seconds,
            config=render(in_force.config),
            config_error=in_force.error,
            live_leases=len(self._store.leases),
            expired_leases=self._store.leases.num_expired,
            open_puts=len(self._puts),
            sources=map(mapping.source_stats, self._sources()),
        )

    async def AttachArena(self, _request: pb.AttachArenaRequest, _context: Any) -> pb.AttachArenaResponse:
        return arena_mapping.attach_response(self._shared())

    async def ReserveBlocks(self, request: pb.ReserveBlocksRequest, _context: Any) -> pb.ReserveBlocksResponse:
        self._require_arena(request.arena_id)
        begin, headers = mapping.put_begin(request.begin), arena_mapping.headers(request)
        return arena_mapping.reserve_response(self._arena_puts.reserve(begin, headers, owner=_owner()))

    async def CommitBlocks(self, request: pb.CommitBlocksRequest, _context: Any) -> pb.CommitBlocksResponse:
        result = await self._arena_puts.commit(mapping.reservation_id(request.reservation_id))
        return arena_mapping.commit_response(result)

    async def CancelReservation(
        self, request: pb.CancelReservationRequest, _context: Any
    ) -> pb.CancelReservationResponse:
        self._arena_puts.cancel(mapping.reservation_id(request.reservation_id))
        return pb.CancelReservationResponse()

    async def ReportCorrupt(self, request: pb.ReportCorruptRequest, _context: Any) -> pb.ReportCorruptResponse:
        lease_id, block_hash = mapping.lease_id(request.lease_id), mapping.block_hash(request.block_hash)
        return pb.ReportCorruptResponse(
            quarantined=await report_corrupt(self._store, lease_id, block_hash, owner=_owner())
        )

    async def WatchKvEvents(
        self, request: pb.WatchKvEventsRequest, _context: Any
    ) -> AsyncIterator[pb.WatchKvEventsResponse]:
        epoch = request.epoch if request.HasField("epoch") else None
        from_sequence = request.from_sequence if request.HasField("from_sequence") else None
        async with aclosing(self._kv_events.follow(epoch, from_sequence)) as batches:
            async for batch in batches:
                yield pb.WatchKvEventsResponse(epoch=self._kv_events.epoch, sequence=batch.sequence, events=told(batch))

    async def drain(self) -> None:
        """The watches end; other calls may finish. What only RAM has is copied, as far as there is time."""
        self._kv_events.close(Draining("the store is shutting down"))
        await self._store.mover.drain()

    def _shared(self) -> SharedFile:
        shared = self._arena_puts.slots.shared
        if shared is None:
            raise Unsupported("this store shares no arena")
        return shared

    def _require_arena(self, arena_id: str) -> None:
        if self._shared().arena_id != arena_id:
            raise UnknownArena(arena_id)

    def _lease_seconds(self, request: pb.MatchPrefixRequest | pb.RenewLeaseRequest) -> float:
        if not request.HasField("lease_duration"):
            return self._default_lease_seconds
        return mapping.lease_seconds(request.lease_duration)


def _owner() -> str:
    """In whose name leases are held: the request's."""
    request = current_request()
    return request.request_id if request else "unknown"
