"""Blocks of a prompt that another executor has computed, if they come in time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.executor.v1.handoff_grpc import ReadHandoff, read_handoff
from weir.kvstore.v1.block_chunk import BlockChunk
from weir_chassis.channel import Connect
from weir_chassis.clock import Clock
from weir_chassis.errors import DataCorrupt
from weir_chassis.owed import Owed
from weir_chassis.telemetry import get_logger
from weir_executor.engine import Engine
from weir_executor.kv_transfer import HeldPrefix
from weir_executor.kv_transfer.assembler import BlockAssembler
from weir_executor.kv_transfer.hashes import Namespaces
from weir_executor.kv_transfer.plan import TierRange
from weir_executor.metrics import ExecutorMetrics
from weir_executor.request import GenerationRequest, StoredPrefix

if TYPE_CHECKING:
    # The generated module has this name only for type checkers.
    from weir.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub

# Giving a handoff back is owed even to an executor that is slow; it lapses by itself when this is too short.
_RELEASE_SECONDS = 5.0
# Executors whose channels are kept open: more prefill workers than one decode worker is fed by.
_MAX_PEERS = 64


@dataclass(frozen=True, slots=True)
class Offered:
    """A handoff, as the request that takes it over brought it: checked, and not believed."""

    handoff_id: str
    address: str
    namespace: bytes
    num_blocks: int
    state_format: str = ""
    state: bytes = b""  # what an engine of this format fetches the blocks by; empty: they are read


@dataclass(frozen=True, slots=True)
class HeldState:
    """A handoff that the engine takes by itself, to be given back once it has."""

    state: bytes
    release: Callable[[], None]


@dataclass(frozen=True, slots=True)
class TakeOverLimits:
    deadline_seconds: float  # for the first block
    bytes_per_second: float  # what is read gets its size divided by this in addition
    budget_bytes: int  # of blocks on their way or not yet taken by the engine, all requests together
    max_reads: int  # at once: more would share the same wire and all be late


@dataclass(slots=True, eq=False)
class _Peer:
    channel: grpc.aio.Channel
    stub: ExecutorServiceAsyncStub
    read: ReadHandoff
    users: int = field(default=0)


class TakeOvers:
    """Used from one event loop."""

    def __init__(
        self, engine: Engine, connect: Connect, limits: TakeOverLimits, *, metrics: ExecutorMetrics, clock: Clock
    ) -> None:
        self._engine, self._connect, self._limits = engine, connect, limits
        self._metrics, self._clock, self._namespaces = metrics, clock, Namespaces(engine.info)
        self._turns = asyncio.Semaphore(limits.max_reads)
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._releases = Owed("release-handoff")
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Of blocks on their way, or not yet taken by the engine."""
        return self._held_bytes

    def hold_state(self, request: GenerationRequest, offered: Offered) -> HeldState | None:
        """What this engine fetches the blocks by, where it does that itself. The handoff is given back after that."""
        ours = self._engine.info.handoff_format
        if not ours or not offered.state or offered.state_format != ours:
            return None
        if offered.namespace != self._namespaces.of(request.cache_scope):
            return None
        self._metrics.take_overs.labels("left_to_the_engine").inc()
        return HeldState(offered.state, lambda: self._releases.start(self._release(offered)))

    async def load(self, request: GenerationRequest, offered: Offered) -> HeldPrefix | None:
        """The blocks that this engine lacks, or as many of them as came. The handoff is given back, come what may.

        Never raises but CancelledError: what does not come is computed.
        """
        start = self._clock.monotonic()
        try:
            blocks, first = await self._read(request, offered)
        except Exception as error:
            self._metrics.take_overs.labels(_outcome(error)).inc()
            if not isinstance(error, grpc.RpcError | DataCorrupt | TimeoutError):
                get_logger().error("take_over_failed", exc_info=error)
            return None
        finally:
            if offered.handoff_id:
                self._releases.start(self._release(offered))
        self._metrics.take_overs.labels("taken" if blocks else "nothing_to_take").inc()
        self._metrics.take_over_seconds.observe(self._clock.monotonic() - start)
        return self._hold(blocks, first) if blocks else None

    async def close(self) -> None:
        """Handoffs are given back as far as that goes within a moment; then they lapse."""
        await self._releases.close()
        for peer in self._peers.values():
            await peer.channel.close()
        self._peers.clear()

    async def _read(self, request: GenerationRequest, offered: Offered) -> tuple[list[bytes | memoryview], int]:
        hashes = request.block_hashes[: offered.num_blocks]
        first = self._engine.cached_prefix_blocks(hashes)
        wanted, size = hashes[first:], len(hashes[first:]) * self._engine.info.block_bytes
        if not wanted or not size or offered.namespace != self._namespaces.of(request.cache_scope):
            return [], first
        if self._held_bytes + size > self._limits.budget_bytes:
            self._metrics.take_overs.labels("no_room").inc()
            return [], first
        timeout = self._limits.deadline_seconds + size / self._limits.bytes_per_second
        self._held_bytes += size
        try:
            async with asyncio.timeout(timeout), self._turns, self._peer(offered.address) as peer:
                return await self._read_from(peer, offered.handoff_id, first, wanted), first
        finally:
            self._held_bytes -= size

    async def _read_from(
        self, peer: _Peer, handoff_id: str, first: int, wanted: Sequence[bytes]
    ) -> list[bytes | memoryview]:
        """What came whole before it broke off is as good as ever."""
        assembler = BlockAssembler(wanted, self._engine.info.block_bytes)
        blocks: list[bytes | memoryview] = []
        call = peer.read(pb.ReadHandoffRequest(handoff_id=handoff_id, first_block=first))
        try:
            async for piece in call:
                if not isinstance(piece, BlockChunk):
                    raise DataCorrupt("the executor sent something that is no block")
                if (block := assembler.add(piece)) is not None:
                    blocks.append(block)
                if assembler.done:
                    break
        except (grpc.RpcError, DataCorrupt) as error:
            if not blocks:
                raise
            self._metrics.take_overs.labels(f"partly_{_outcome(error)}").inc()
        finally:
            call.cancel()
            self._metrics.take_over_bytes.inc(sum(map(len, blocks)))
        return blocks

    def _hold(self, blocks: Sequence[bytes | memoryview], first: int) -> HeldPrefix:
        size = sum(map(len, blocks))
        self._held_bytes += size

        def release() -> None:
            self._held_bytes -= size

        return HeldPrefix(StoredPrefix(first, blocks), release, [TierRange(len(blocks), "handoff")])

    async def _release(self, offered: Offered) -> None:
        with suppress(grpc.RpcError):  # an executor that is gone holds nothing
            async with self._peer(offered.address) as peer:
                request = pb.ReleaseHandoffRequest(handoff_id=offered.handoff_id)
                await peer.stub.ReleaseHandoff(request, timeout=_RELEASE_SECONDS)

    @asynccontextmanager
    async def _peer(self, address: str) -> AsyncIterator[_Peer]:
        """Kept open for the next handoff. The one that was used least recently, and is not used now, goes for it."""
        peer = self._peers.get(address)
        if peer is None:
            channel = self._connect(address)
            peer = self._peers[address] = _Peer(channel, ExecutorServiceStub(channel), read_handoff(channel))
        self._peers.move_to_end(address)
        peer.users += 1
        try:
            await self._close_surplus()
            yield peer
        finally:
            peer.users -= 1

    async def _close_surplus(self) -> None:
        idle = [address for address, peer in self._peers.items() if not peer.users]
        for address in idle[: max(0, len(self._peers) - _MAX_PEERS)]:
            await self._peers.pop(address).channel.close()


def _outcome(error: Exception) -> str:
    if isinstance(error, DataCorrupt):
        return "corrupt"
    if isinstance(error, TimeoutError):
        return "late"
    if isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.NOT_FOUND:
        return "gone"
    return "failed"
