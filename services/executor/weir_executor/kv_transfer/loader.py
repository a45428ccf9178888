"""The longest stored prefix of a prompt, if it comes in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random

import grpc

from weir_chassis.breaker import Breaker
from weir_chassis.clock import Clock
from weir_chassis.errors import DataCorrupt
from weir_chassis.telemetry import get_logger
from weir_executor.engine import EngineInfo, StoredPrefix
from weir_executor.kv_transfer.hashes import RecentHashes
from weir_executor.kv_transfer.transport import BlockTransport, Payload
from weir_executor.metrics import ExecutorMetrics

# Giving a lease back is owed even to a store that is slow; it lapses by itself when this is too short.
_RELEASE_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
# MatchPrefixRequest's own limit.
MAX_MATCHED_BLOCKS = 65_536


@dataclass(frozen=True, slots=True)
class LoaderLimits:
    deadline_seconds: float  # for finding out what is stored, and for the first bytes
    bytes_per_second: float  # what is loaded gets its size divided by this in addition
    min_blocks: int  # fewer are computed sooner than loaded
    budget_bytes: int  # of prefixes on their way or not yet taken by the engine, all requests together
    max_loads: int  # at once: more would share the same wire and all be late


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to ask the store for: `block_hashes` are those of the prompt's blocks from number `first_block` on."""

    namespace: bytes
    local_hashes: Sequence[bytes]  # of the blocks before, which the engine holds itself
    block_hashes: Sequence[bytes]

    @property
    def first_block(self) -> int:
        return len(self.local_hashes)

    @property
    def flight_key(self) -> tuple[bytes, bytes]:
        """Plans that agree in this begin with the same block, and a hash names all that comes before it."""
        return self.namespace, self.block_hashes[0]


@dataclass(frozen=True, slots=True)
class HeldPrefix:
    """Verified blocks, and the memory they take, to be given back once the engine has them."""

    prefix: StoredPrefix
    release: Callable[[], None]


@dataclass(slots=True)
class _Flight:
    """One load, and how many wait for it."""

    plan: LoadPlan
    task: asyncio.Task[Sequence[Payload]]
    waiters: int = field(default=0)


class PrefixLoader:
    def __init__(
        self,
        transport: BlockTransport,
        info: EngineInfo,
        limits: LoaderLimits,
        *,
        known: RecentHashes,
        metrics: ExecutorMetrics,
        clock: Clock,
        random: Random,
    ) -> None:
        """`known` learns what the store holds and what it does not."""
        self._transport, self._info, self._limits = transport, info, limits
        self._known, self._metrics, self._clock = known, metrics, clock
        self._breaker = Breaker(clock, random)
        self._flights: dict[tuple[bytes, bytes], _Flight] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def worth_asking(self, plan: LoadPlan) -> bool:
        """Cheap, and no promise: the store may hold nothing."""
        if len(plan.block_hashes) < self._limits.min_blocks:
            return False
        if plan.flight_key in self._flights:
            return True
        if len(self._flights) >= self._limits.max_loads or self._room_blocks() < self._limits.min_blocks:
            self._metrics.loads.labels("no_room").inc()
            return False
        if not self._breaker.allows():
            self._metrics.loads.labels("breaker").inc()
            return False
        return True

    async def load(self, plan: LoadPlan) -> HeldPrefix | None:
        """Blocks `first_block` onwards, or None. Requests that want the same chain at the same time share one load."""
        flight = self._flights.get(plan.flight_key)
        if flight is None and len(self._flights) >= self._limits.max_loads:
            # Others have taken off since this plan was found worth asking.
            self._metrics.loads.labels("no_room").inc()
            return None
        flight = flight or self._take_off(plan)
        flight.waiters += 1
        try:
            blocks = await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                self._abandon(flight)
        shared = _common(plan.block_hashes, flight.plan.block_hashes)
        return self._hold(plan, blocks[:shared])

    async def close(self) -> None:
        """Ends every load. Leases are given back as far as that goes within a moment; then they lapse."""
        for flight in list(self._flights.values()):
            self._abandon(flight)
        await asyncio.sleep(0)  # the abandoned loads give their leases back
        if self._releases:
            await asyncio.wait(self._releases, timeout=_CLOSE_SECONDS)
        for release in list(self._releases):
            release.cancel()
        await asyncio.gather(*self._releases, return_exceptions=True)

    def _take_off(self, plan: LoadPlan) -> _Flight:
        flight = _Flight(plan, asyncio.create_task(self._fly(plan), name="load-blocks"))
        self._flights[plan.flight_key] = flight
        flight.task.add_done_callback(lambda _: self._forget(flight))
        return flight

    def _abandon(self, flight: _Flight) -> None:
        """Nobody is left to want it. Whoever wants the same from now on must not join what is about to end."""
        self._forget(flight)
        flight.task.cancel()

    def _forget(self, flight: _Flight) -> None:
        if self._flights.get(flight.plan.flight_key) is flight:
            del self._flights[flight.plan.flight_key]

    async def _fly(self, plan: LoadPlan) -> Sequence[Payload]:
        """Whatever goes wrong, fewer blocks come."""
        start = self._clock.monotonic()
        try:
            blocks = await self._match_and_get(plan)
        except Exception as error:
            self._breaker.failed()
            self._metrics.loads.labels(_outcome(error)).inc()
            if not isinstance(error, grpc.RpcError | DataCorrupt):
                get_logger().error("kv_load_failed", exc_info=error)
            return ()
        self._breaker.succeeded()
        self._metrics.loads.labels("hit" if blocks else "miss").inc()
        self._metrics.load_seconds.observe(self._clock.monotonic() - start)
        return blocks

    async def _match_and_get(self, plan: LoadPlan) -> Sequence[Payload]:
        wanted = plan.block_hashes
        match = await self._transport.match(
            plan.namespace,
            [*plan.local_hashes, *wanted],
            skip_blocks=plan.first_block,
            block_size=self._info.block_size,
            timeout=self._limits.deadline_seconds,
        )
        matched = min(max(0, match.matched_blocks - plan.first_block), len(wanted))
        self._known.add(wanted[:matched])
        self._known.discard(wanted[matched:])
        if match.lease_id is None:
            return ()
        try:
            count = min(matched, self._room_blocks())
            return await self._get(match.lease_id, wanted[:count]) if count >= self._limits.min_blocks else ()
        finally:
            self._release_soon(match.lease_id)

    async def _get(self, lease_id: str, wanted: Sequence[bytes]) -> Sequence[Payload]:
        size, came = len(wanted) * self._info.block_bytes, list[Payload]()
        timeout = self._limits.deadline_seconds + size / self._limits.bytes_per_second
        self._held_bytes += size
        blocks = self._transport.get(lease_id, wanted, block_bytes=self._info.block_bytes, timeout=timeout)
        try:
            async with aclosing(blocks):
                async for some in blocks:
                    came += some
        except (grpc.RpcError, DataCorrupt):
            # What came whole before it broke off is as good as ever.
            if not came:
                raise
        finally:
            self._held_bytes -= size
            self._metrics.load_bytes.inc(sum(map(len, came)))
        return came

    def _release_soon(self, lease_id: str) -> None:
        # A task of its own, because a load that is cancelled owes the lease just the same.
        task = asyncio.create_task(self._release(lease_id), name="release-lease")
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _release(self, lease_id: str) -> None:
        try:
            await self._transport.release(lease_id, timeout=_RELEASE_SECONDS)
        except grpc.RpcError:
            self._metrics.loads.labels("lease_not_released").inc()

    def _hold(self, plan: LoadPlan, blocks: Sequence[Payload]) -> HeldPrefix | None:
        if len(blocks) < self._limits.min_blocks:
            return None
        size = sum(map(len, blocks))
        self._held_bytes += size

        def release() -> None:
            self._held_bytes -= size

        return HeldPrefix(StoredPrefix(plan.first_block, blocks), release)

    def _room_blocks(self) -> int:
        return max(0, self._limits.budget_bytes - self._held_bytes) // self._info.block_bytes


def _common(left: Sequence[bytes], right: Sequence[bytes]) -> int:
    """How many leading hashes are equal."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))


def _outcome(error: Exception) -> str:
    if isinstance(error, DataCorrupt):
        return "corrupt"
    late = isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return "late" if late else "failed"
