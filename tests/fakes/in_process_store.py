"""A `BlockTransport` to a kvstore in the same process that is away, slow, lies, or forgets its leases, by a seed.

away   every call fails          lying     other bytes, blocks that were not asked for, more than it has
slow   no answer in time         expired   a lease is gone when it is used
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from random import Random
from typing import Final

import grpc
from xxhash import xxh3_64_intdigest

from fakes.chaotic_tiers import Dice
from weir.kvstore.v1.block_chunk import BlockChunk
from weir_chassis.clock import Clock
from weir_chassis.errors import LeaseExpired, NotFound, Overloaded
from weir_executor.kv_transfer.assembler import BlockAssembler
from weir_executor.kv_transfer.plan import TierRange
from weir_executor.kv_transfer.transport import Match, Payload, Put, PutResult
from weir_kvstore.put import PutPiece, Puts
from weir_kvstore.reads import read_lease
from weir_kvstore.staging import PutBegin
from weir_kvstore.store import BlockStore

LEASE_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 0.0005
FAULTS: Final = (
    "store away", "store slow", "store lies of what it has", "store sends other bytes", "store sends another block",
    "lease expired", "store breaks off", "put fails",
)  # fmt: skip


class StoreError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code)
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code


class InProcessStore:
    """`leases` are those that were given and not given back."""

    def __init__(self, store: BlockStore, puts: Puts, dice: Dice, clock: Clock, random: Random) -> None:
        self._store, self._puts, self._dice, self._clock, self._random = store, puts, dice, clock, random
        self.is_away = False

    async def match(
        self, namespace: bytes, block_hashes: Sequence[bytes], *, skip_blocks: int, block_size: int, timeout: float
    ) -> Match:
        await self._may_fail(timeout)
        try:
            found = await self._store.match(
                namespace, block_hashes, skip_blocks=skip_blocks, seconds=LEASE_SECONDS, owner="match"
            )
        except Overloaded as error:
            raise StoreError(grpc.StatusCode.RESOURCE_EXHAUSTED) from error
        matched = found.matched_blocks
        if found.lease_id is not None and self._dice("store lies of what it has"):
            matched = min(len(block_hashes), matched + 3)
        return Match(matched, found.lease_id, [TierRange(each.blocks, each.tier) for each in found.ranges])

    async def get(
        self, lease_id: str, wanted: Sequence[bytes], *, block_bytes: int, timeout: float
    ) -> AsyncGenerator[Sequence[Payload], None]:
        """Verified as the wire's is."""
        await self._may_fail(timeout)
        if self._dice("lease expired"):
            self._store.leases.release(lease_id)
        assembler = BlockAssembler(wanted, block_bytes)
        try:
            async for piece in read_lease(self._store, lease_id, owner="get", max_blocks=len(wanted)):
                if self._dice("store breaks off"):
                    raise StoreError(grpc.StatusCode.UNAVAILABLE)
                chunk, block_hash = bytes(piece.chunk), piece.record.address.block_hash
                checksum = piece.record.checksum
                if self._dice("store sends other bytes"):
                    chunk = self._random.randbytes(len(chunk))
                if self._dice("store sends another block"):
                    block_hash, checksum = self._random.randbytes(16), xxh3_64_intdigest(chunk)
                sent = BlockChunk(block_hash, b"", piece.record.size_bytes, piece.offset, chunk, checksum)
                if (block := assembler.add(sent)) is not None:
                    yield (block,)
                if assembler.done:
                    return
        except (LeaseExpired, NotFound) as error:
            raise StoreError(grpc.StatusCode.FAILED_PRECONDITION) from error

    async def put(self, put: Put, *, timeout: float) -> PutResult:
        await self._may_fail(timeout)
        if self._dice("put fails"):
            raise StoreError(grpc.StatusCode.INTERNAL)
        try:
            async with self._puts.open("put") as open_put:
                open_put.begin(PutBegin(put.namespace, put.tenant, put.block_size, put.prefill_seconds_per_block))
                for block in put.blocks:
                    size, checksum = len(block.payload), xxh3_64_intdigest(block.payload)
                    piece = PutPiece(block.block_hash, block.parent_block_hash, size, checksum, 0, block.payload)
                    await open_put.add(piece)
                done = open_put.commit()
        except Overloaded as error:
            raise StoreError(grpc.StatusCode.RESOURCE_EXHAUSTED) from error
        return PutResult(done.stored, done.present, done.corrupt, done.refused)

    async def release(self, lease_id: str, *, timeout: float) -> None:
        """Never fails: what is not given back lapses, which is another test's."""
        self._store.leases.release(lease_id)

    async def close(self) -> None:
        pass

    async def _may_fail(self, timeout: float) -> None:
        await self._clock.sleep(_CALL_SECONDS)
        if self._dice("store away") or self.is_away:
            raise StoreError(grpc.StatusCode.UNAVAILABLE)
        if self._dice("store slow"):
            await self._clock.sleep(2 * timeout)
            raise StoreError(grpc.StatusCode.DEADLINE_EXCEEDED)
