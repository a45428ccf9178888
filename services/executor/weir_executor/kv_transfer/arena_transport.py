"""Blocks by reference, through the memory that a store on this host shares; by value where it shares none.

load   MatchPrefix ─▶ GetBlocks ─▶ places ─▶ copied out and verified on a thread ─▶ ReleaseLease
put    ReserveBlocks ─▶ places ─▶ copied in on a thread ─▶ CommitBlocks
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from xxhash import xxh3_64_intdigest

from weir.kvstore.v1 import kvstore_pb2 as kv
from weir.kvstore.v1.block_chunk import BlockChunk
from weir.kvstore.v1.block_chunk_grpc import get_blocks
from weir.kvstore.v1.block_hash import DIGEST_BYTES, join_hashes, split_hashes
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.clock import Clock
from weir_chassis.errors import DataCorrupt
from weir_chassis.owed import Owed
from weir_executor.kv_transfer.assembler import BlockAssembler
from weir_executor.kv_transfer.attached_arena import AttachedArena, Copied, Place
from weir_executor.kv_transfer.attaching import Attaching
from weir_executor.kv_transfer.copier import Copier
from weir_executor.kv_transfer.copy_threads import CopyThreads
from weir_executor.kv_transfer.grpc_transport import LEASE_SECONDS, GrpcTransport, begin_of
from weir_executor.kv_transfer.private_buffers import PrivateBuffers
from weir_executor.kv_transfer.transport import Match, Payload, Put, PutResult
from weir_executor.step_output import FullBlock

if TYPE_CHECKING:
    # The generated module has this name only for type checkers.
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub

T = TypeVar("T")

# About what is copied in one go, in some 2 ms: much less, and going to a thread would count; much more, and a load that
# is given up would go on for nothing.
_BATCH_BYTES: Final = 32 * 1024 * 1024
# Two threads: while one of them waits for memory, the other copies.
_COPIES_AT_ONCE: Final = 2
# Less is not worth a second thread.
_SPLIT_BYTES: Final = 4 * 1024 * 1024
# Telling the store what it would find out by itself: a reservation lapses, a corrupt block is found by the next reader.
_COURTESY_SECONDS: Final = 5.0


class ArenaTransport:
    """A `BlockTransport`."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock, copier: Copier) -> None:
        self._stub: KvStoreServiceAsyncStub = KvStoreServiceStub(channel)
        self._get_blocks = get_blocks(channel)
        self._clock = clock
        self._by_value = GrpcTransport(channel)
        self._attaching = Attaching(self._stub, clock, copier)
        self._buffers = PrivateBuffers()
        self._threads = CopyThreads()
        self._lapses: dict[str, float] = {}  # live leases, of which a loader has a bounded number
        self._courtesies = Owed("tell-kvstore")

    async def match(
        self, namespace: bytes, block_hashes: Sequence[bytes], *, skip_blocks: int, block_size: int, timeout: float
    ) -> Match:
        # Counted from before the store was asked: for us a lease lapses no later than for the store.
        lapses_at = self._clock.monotonic() + LEASE_SECONDS
        try:
            match = await self._by_value.match(
                namespace, block_hashes, skip_blocks=skip_blocks, block_size=block_size, timeout=timeout
            )
        except grpc.RpcError as error:
            self._attaching.gone(error)
            raise
        if match.lease_id is not None:
            self._lapses[match.lease_id] = lapses_at
        return match

    async def get(
        self, lease_id: str, wanted: Sequence[bytes], *, block_bytes: int, timeout: float
    ) -> AsyncGenerator[Sequence[Payload], None]:
        ends_at = self._clock.monotonic() + timeout
        arena, came = await self._attaching.arena(timeout / 2), False
        if arena is not None:
            try:
                async with aclosing(self._get(arena, lease_id, wanted, block_bytes, self._left(ends_at))) as blocks:
                    async for payloads in blocks:
                        came = True
                        yield payloads
                return
            except grpc.RpcError as error:
                if not self._attaching.lost(arena, error) or came:
                    raise
        by_value = self._by_value.get(lease_id, wanted, block_bytes=block_bytes, timeout=self._left(ends_at))
        async with aclosing(by_value) as blocks:
            async for payloads in blocks:
                yield payloads

    async def put(self, put: Put, *, timeout: float) -> PutResult:
        ends_at = self._clock.monotonic() + timeout
        arena = await self._attaching.arena(timeout / 2)
        if arena is not None:
            request = await asyncio.to_thread(_reservation, arena.arena_id, put)
            try:
                reserved = await self._stub.ReserveBlocks(request, timeout=self._left(ends_at))
                return await self._fill(arena, put.blocks, reserved, ends_at)
            except grpc.RpcError as error:
                if not self._attaching.lost(arena, error):
                    raise
        return await self._by_value.put(put, timeout=self._left(ends_at))

    async def release(self, lease_id: str, *, timeout: float) -> None:
        self._lapses.pop(lease_id, None)
        await self._by_value.release(lease_id, timeout=timeout)

    async def close(self) -> None:
        await self._courtesies.close()
        self._threads.close()
        self._attaching.close()
        await self._by_value.close()

    # ── loads ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _get(
        self, arena: AttachedArena, lease_id: str, wanted: Sequence[bytes], block_bytes: int, timeout: float
    ) -> AsyncGenerator[Sequence[Payload], None]:
        """Places, and chunks of what the store could not bring into its arena."""
        assembler = BlockAssembler(wanted, block_bytes)
        request = kv.GetBlocksRequest(lease_id=lease_id, arena_id=arena.arena_id, max_blocks=len(wanted))
        call = self._get_blocks(request, timeout=timeout)
        try:
            async for answer in call:
                if isinstance(answer, BlockChunk):
                    if (block := assembler.add(answer)) is not None:
                        yield (block,)
                else:
                    places = _places(answer.placed, arena, block_bytes)
                    assembler.skip([place.block_hash for place in places])
                    async with aclosing(self._copied(arena, lease_id, places, block_bytes)) as copies:
                        async for payloads in copies:
                            yield payloads
                if assembler.done or self._lapsed(lease_id):
                    return
        finally:
            call.cancel()

    async def _copied(
        self, arena: AttachedArena, lease_id: str, places: Sequence[Place], block_bytes: int
    ) -> AsyncGenerator[Sequence[Payload], None]:
        """Ends early when the lease may have lapsed: from then on the store may have put something else there."""
        async with aclosing(self._copies(arena, places, block_bytes)) as copies:
            async for copied in copies:
                if self._lapsed(lease_id):
                    return
                if copied.payloads:
                    yield copied.payloads
                if copied.corrupt is not None:
                    self._courtesies.start(_whether_or_not(self._report(lease_id, copied.corrupt.block_hash)))
                    raise DataCorrupt("the kvstore's arena holds a block that does not match its checksum")

    async def _copies(
        self, arena: AttachedArena, places: Sequence[Place], block_bytes: int
    ) -> AsyncGenerator[Copied, None]:
        """In order, some at once."""
        copying: deque[asyncio.Future[Copied]] = deque()
        try:
            for batch in _batches(places, _num_batches(len(places), block_bytes)):
                copying.append(self._threads.run(arena.copy_out, batch, block_bytes, self._buffers))
                if len(copying) == _COPIES_AT_ONCE:
                    yield await copying.popleft()
            while copying:
                yield await copying.popleft()
        finally:
            for each in copying:
                each.cancel()

    def _lapsed(self, lease_id: str) -> bool:
        return self._lapses.get(lease_id, 0.0) <= self._clock.monotonic()

    async def _report(self, lease_id: str, block_hash: bytes) -> None:
        request = kv.ReportCorruptRequest(lease_id=lease_id, block_hash=block_hash)
        await self._stub.ReportCorrupt(request, timeout=_COURTESY_SECONDS)

    # ── puts ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _fill(
        self, arena: AttachedArena, blocks: Sequence[FullBlock], reserved: kv.ReserveBlocksResponse, ends_at: float
    ) -> PutResult:
        """The second phase, when there is anything to write. What is reserved is committed or given back."""
        kinds = [place.WhichOneof("place") for place in reserved.places]
        if not reserved.reservation_id:
            return PutResult(0, kinds.count("present"), 0, kinds.count("refused"))
        writing = asyncio.ensure_future(self._write(arena, blocks, reserved.places))
        try:
            # Not to be interrupted: what is given back may be somebody else's while we still write.
            await asyncio.shield(writing)
            request = kv.CommitBlocksRequest(reservation_id=reserved.reservation_id)
            done = await self._stub.CommitBlocks(request, timeout=self._left(ends_at))
        except BaseException:
            self._courtesies.start(_whether_or_not(self._give_back(reserved.reservation_id, writing)))
            raise
        told = done.stored_blocks + done.present_blocks + done.corrupt_blocks
        return PutResult(done.stored_blocks, done.present_blocks, done.corrupt_blocks, len(blocks) - told)

    async def _write(self, arena: AttachedArena, blocks: Sequence[FullBlock], places: Sequence[kv.BlockPlace]) -> None:
        pairs = [
            (place.offset, block.payload)
            for place, block in zip(places, blocks, strict=True)
            if place.WhichOneof("place") == "offset"
        ]
        for offset, payload in pairs:
            arena.require(offset, len(payload))
        await asyncio.to_thread(arena.copy_in, [offset for offset, _ in pairs], [payload for _, payload in pairs])

    async def _give_back(self, reservation_id: str, writing: asyncio.Future[None]) -> None:
        await asyncio.wait([writing])
        request = kv.CancelReservationRequest(reservation_id=reservation_id)
        await self._stub.CancelReservation(request, timeout=_COURTESY_SECONDS)

    # ── both ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _left(self, ends_at: float) -> float:
        return max(0.0, ends_at - self._clock.monotonic())


async def _whether_or_not(courtesy: Coroutine[Any, Any, None]) -> None:
    with suppress(grpc.RpcError):  # the store finds out by itself
        await courtesy


def _places(placed: kv.PlacedBlocks, arena: AttachedArena, block_bytes: int) -> list[Place]:
    """Raises DataCorrupt for columns that do not agree, blocks of another size, and places outside the arena."""
    count = len(placed.offsets)
    if (len(placed.block_hashes), len(placed.payload_bytes), len(placed.checksums)) != (
        DIGEST_BYTES * count,
        count,
        count,
    ):
        raise DataCorrupt("the kvstore sent places whose columns are not of one length")
    if not count:
        return []
    if set(placed.payload_bytes) != {block_bytes}:
        raise DataCorrupt("the kvstore sent a block of another size")
    arena.require(min(placed.offsets), block_bytes)
    arena.require(max(placed.offsets), block_bytes)
    hashes = split_hashes(placed.block_hashes)
    return list(map(Place, hashes, placed.offsets, placed.checksums))


def _reservation(arena_id: str, put: Put) -> kv.ReserveBlocksRequest:
    """Hashes every payload: not for the event loop."""
    blocks = put.blocks
    return kv.ReserveBlocksRequest(
        arena_id=arena_id,
        begin=begin_of(put),
        block_hashes=join_hashes(block.block_hash for block in blocks),
        parent_block_hashes=join_hashes(block.parent_block_hash or bytes(DIGEST_BYTES) for block in blocks),
        payload_bytes=[len(block.payload) for block in blocks],
        checksums=[xxh3_64_intdigest(block.payload) for block in blocks],
    )


def _num_batches(blocks: int, block_bytes: int) -> int:
    """In how many goes some blocks are copied: as many on each thread."""
    size_bytes = blocks * block_bytes
    if size_bytes <= _SPLIT_BYTES:
        return min(1, blocks)
    rounds = -(-size_bytes // (_COPIES_AT_ONCE * _BATCH_BYTES))
    return min(blocks, rounds * _COPIES_AT_ONCE)


def _batches(items: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    """So many, as even as can be: the threads are done at the same time."""
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]
