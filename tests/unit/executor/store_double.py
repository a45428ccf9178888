"""A kvstore as small as the contract allows, with faults: for tests of those who call one."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from xxhash import xxh3_64_intdigest

from weir.kvstore.v1 import kvstore_pb2 as kv
from weir.kvstore.v1.block_hash import split_hashes
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceServicer, add_KvStoreServiceServicer_to_server
from weir_chassis.errors import Internal, NotFound, Unsupported
from weir_chassis.server import Registration
from weir_chassis.testing import serve_in_memory

_NAME = kv.DESCRIPTOR.services_by_name["KvStoreService"].full_name


class StoreDouble(KvStoreServiceServicer):
    """A test may set `answering`, `sending`, `broken`, `corrupt`, `piece_bytes`, `stop_after`, and look at the rest."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[bytes, bytes], bytes] = {}
        self.parents: dict[bytes, bytes] = {}
        self.leases: dict[str, list[tuple[bytes, bytes]]] = {}
        self.released = 0
        self.matches: list[kv.MatchPrefixRequest] = []
        self.gets = 0
        self.puts = 0
        self.begins: list[kv.PutBegin] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.sending = asyncio.Event()  # of GetBlocks alone
        self.sending.set()
        self.broken = False
        self.corrupt: set[bytes] = set()
        self.piece_bytes = 1 << 20
        self.stop_after: int | None = None  # blocks that GetBlocks sends before it breaks off

    async def AttachArena(self, request: kv.AttachArenaRequest, context: Any) -> kv.AttachArenaResponse:
        raise Unsupported("the double shares no arena")

    async def ReserveBlocks(self, request: kv.ReserveBlocksRequest, context: Any) -> kv.ReserveBlocksResponse:
        raise Unsupported("the double shares no arena")

    async def CommitBlocks(self, request: kv.CommitBlocksRequest, context: Any) -> kv.CommitBlocksResponse:
        raise Unsupported("the double shares no arena")

    async def CancelReservation(
        self, request: kv.CancelReservationRequest, context: Any
    ) -> kv.CancelReservationResponse:
        raise Unsupported("the double shares no arena")

    async def ReportCorrupt(self, request: kv.ReportCorruptRequest, context: Any) -> kv.ReportCorruptResponse:
        raise Unsupported("the double shares no arena")

    async def WatchKvEvents(
        self, request: kv.WatchKvEventsRequest, context: Any
    ) -> AsyncIterator[kv.WatchKvEventsResponse]:
        raise Unsupported("the double tells no events")
        yield kv.WatchKvEventsResponse()

    async def MatchPrefix(self, request: kv.MatchPrefixRequest, context: Any) -> kv.MatchPrefixResponse:
        self.matches.append(request)
        await self._may_answer()
        addresses = [(request.namespace, block_hash) for block_hash in split_hashes(request.block_hashes)]
        matched = request.skip_blocks
        while matched < len(addresses) and addresses[matched] in self.blocks:
            matched += 1
        response = kv.MatchPrefixResponse(matched_blocks=matched)
        if leased := addresses[request.skip_blocks : matched]:
            response.lease_id = f"lease-{len(self.matches)}"
            response.leased_bytes = sum(len(self.blocks[address]) for address in leased)
            self.leases[response.lease_id] = leased
        return response

    async def GetBlocks(self, request: kv.GetBlocksRequest, context: Any) -> AsyncIterator[kv.GetBlocksResponse]:
        self.gets += 1
        if request.lease_id not in self.leases:
            raise NotFound(request.lease_id)
        for i, (namespace, block_hash) in enumerate(self.leases[request.lease_id][: request.max_blocks or None]):
            if i == self.stop_after:
                # gRPC may throw away what the caller has not read yet when an error follows at its heels.
                await asyncio.sleep(0.05)
                raise Internal("broken off")
            await self.sending.wait()
            payload = self.blocks[namespace, block_hash]
            sent = bytes(reversed(payload)) if block_hash in self.corrupt else payload
            for offset in range(0, len(payload), self.piece_bytes):
                yield kv.GetBlocksResponse(
                    block_hash=block_hash,
                    payload_bytes=len(payload),
                    offset=offset,
                    chunk=sent[offset : offset + self.piece_bytes],
                    checksum=xxh3_64_intdigest(payload),
                )

    async def PutBlocks(
        self, request_iterator: AsyncIterator[kv.PutBlocksRequest], context: Any
    ) -> kv.PutBlocksResponse:
        self.puts += 1
        await self._may_answer()
        namespace, staged, response, committed = b"", dict[bytes, bytearray](), kv.PutBlocksResponse(), False
        async for part in request_iterator:
            assert not committed
            match part.WhichOneof("part"):
                case "begin":
                    namespace = part.begin.namespace
                    self.begins.append(part.begin)
                case "chunk":
                    chunk = part.chunk
                    whole = staged.setdefault(chunk.block_hash, bytearray())
                    assert chunk.offset == len(whole)
                    whole += chunk.chunk
                    self.parents[chunk.block_hash] = chunk.parent_block_hash
                    if len(whole) == chunk.payload_bytes:
                        assert xxh3_64_intdigest(whole) == chunk.checksum
                case "commit":
                    committed = True
        assert committed
        for block_hash, payload in staged.items():
            if (namespace, block_hash) in self.blocks:
                response.present_blocks += 1
            else:
                self.blocks[namespace, block_hash] = bytes(payload)
                response.stored_blocks += 1
        return response

    async def ReleaseLease(self, request: kv.ReleaseLeaseRequest, context: Any) -> kv.ReleaseLeaseResponse:
        self.released += self.leases.pop(request.lease_id, None) is not None
        return kv.ReleaseLeaseResponse()

    async def RenewLease(self, request: kv.RenewLeaseRequest, context: Any) -> kv.RenewLeaseResponse:
        raise Unsupported("leases of the double do not lapse")

    async def RemoveBlocks(self, request: kv.RemoveBlocksRequest, context: Any) -> kv.RemoveBlocksResponse:
        raise Unsupported("a test changes `blocks` itself")

    async def GetStats(self, request: kv.GetStatsRequest, context: Any) -> kv.GetStatsResponse:
        raise Unsupported("a test looks at `blocks` itself")

    async def _may_answer(self) -> None:
        await self.answering.wait()
        if self.broken:
            raise Internal("told to be broken")


class SharingDouble(StoreDouble):
    """The same with an arena: a file in `directory`, of which no place is ever used twice."""

    def __init__(self, directory: Path, arena_bytes: int = 64 << 20) -> None:
        super().__init__()
        self.directory, self.arena_bytes = directory, arena_bytes
        self.attached = 0
        self.reports: list[bytes] = []
        self.reservations: dict[str, tuple[bytes, list[tuple[kv.PutChunk, int]], int]] = {}
        self.cancelled = 0
        self.places_at_once = 3
        self.new_arena("a1")

    def new_arena(self, arena_id: str) -> None:
        """As a restart brings it."""
        self.arena_id, self.used = arena_id, 0
        self.path = self.directory / f"weir-kvstore-{arena_id}"
        with self.path.open("wb") as file:
            file.truncate(self.arena_bytes)
        with self.path.open("r+b") as file:
            self.arena = mmap.mmap(file.fileno(), self.arena_bytes)

    async def AttachArena(self, request: kv.AttachArenaRequest, context: Any) -> kv.AttachArenaResponse:
        self.attached += 1
        return kv.AttachArenaResponse(arena_id=self.arena_id, path=str(self.path), size_bytes=self.arena_bytes)

    async def GetBlocks(self, request: kv.GetBlocksRequest, context: Any) -> AsyncIterator[kv.GetBlocksResponse]:
        pieces = super().GetBlocks(request, context)
        if not request.arena_id:
            async for piece in pieces:
                yield piece
            return
        self._require(request.arena_id)
        placed, count = kv.PlacedBlocks(), 0
        async for piece in pieces:
            if not piece.offset:
                count += 1
                placed.block_hashes += piece.block_hash
                placed.offsets.append(self._take(piece.payload_bytes))
                placed.payload_bytes.append(piece.payload_bytes)
                placed.checksums.append(piece.checksum)
            start = placed.offsets[-1] + piece.offset
            self.arena[start : start + len(piece.chunk)] = piece.chunk
            whole = piece.offset + len(piece.chunk) == piece.payload_bytes
            if whole and (count % self.places_at_once == 0 or count == self.stop_after):
                yield kv.GetBlocksResponse(placed=placed)
                placed = kv.PlacedBlocks()
        if placed.offsets:
            yield kv.GetBlocksResponse(placed=placed)

    async def ReserveBlocks(self, request: kv.ReserveBlocksRequest, context: Any) -> kv.ReserveBlocksResponse:
        self._require(request.arena_id)
        self.puts += 1
        self.begins.append(request.begin)
        await self._may_answer()
        response = kv.ReserveBlocksResponse()
        reserved: list[tuple[kv.PutChunk, int]] = []
        columns = zip(
            split_hashes(request.block_hashes),
            split_hashes(request.parent_block_hashes),
            request.payload_bytes,
            request.checksums,
            strict=True,
        )
        for block_hash, parent, size, checksum in columns:
            if (request.begin.namespace, block_hash) in self.blocks:
                response.places.add(present=True)
                continue
            self.parents[block_hash] = parent.strip(b"\0") and parent
            offset = self._take(size)
            response.places.add(offset=offset)
            reserved.append((kv.PutChunk(block_hash=block_hash, payload_bytes=size, checksum=checksum), offset))
        if reserved:
            response.reservation_id = f"reservation-{self.puts}"
            present = len(response.places) - len(reserved)
            self.reservations[response.reservation_id] = (request.begin.namespace, reserved, present)
        return response

    async def CommitBlocks(self, request: kv.CommitBlocksRequest, context: Any) -> kv.CommitBlocksResponse:
        await self.sending.wait()
        namespace, reserved, present = self.reservations.pop(request.reservation_id)
        for chunk, offset in reserved:
            payload = self.arena[offset : offset + chunk.payload_bytes]
            assert xxh3_64_intdigest(payload) == chunk.checksum
            self.blocks[namespace, chunk.block_hash] = payload
        return kv.CommitBlocksResponse(stored_blocks=len(reserved), present_blocks=present)

    async def CancelReservation(
        self, request: kv.CancelReservationRequest, context: Any
    ) -> kv.CancelReservationResponse:
        self.cancelled += self.reservations.pop(request.reservation_id, None) is not None
        return kv.CancelReservationResponse()

    async def ReportCorrupt(self, request: kv.ReportCorruptRequest, context: Any) -> kv.ReportCorruptResponse:
        self.reports.append(request.block_hash)
        return kv.ReportCorruptResponse(quarantined=True)

    def _require(self, arena_id: str) -> None:
        if arena_id != self.arena_id:
            raise NotFound(arena_id)

    def _take(self, size_bytes: int) -> int:
        self.used += size_bytes
        assert self.used <= self.arena_bytes
        return self.used - size_bytes


@asynccontextmanager
async def serve_store(store: StoreDouble) -> AsyncIterator[grpc.aio.Channel]:
    async with serve_in_memory(Registration(add_KvStoreServiceServicer_to_server, store, _NAME)) as channel:
        yield channel
