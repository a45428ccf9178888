"""The stored prefixes of requests: who shares a load, how many there are, and what memory they take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import grpc

from weir_chassis.breaker import Breaker
from weir_chassis.clock import Clock
from weir_chassis.errors import DataCorrupt
from weir_chassis.telemetry import get_logger
from weir_executor.engine import Engine
from weir_executor.kv_transfer.budget import Budget
from weir_executor.kv_transfer.fetch import Fetched, Fetcher
from weir_executor.kv_transfer.hashes import RecentHashes
from weir_executor.kv_transfer.plan import HeldPrefix, LoaderLimits, LoadPlan
from weir_executor.kv_transfer.race import cut
from weir_executor.kv_transfer.transport import BlockTransport
from weir_executor.metrics import ExecutorMetrics
from weir_executor.request import StoredPrefix


@dataclass(slots=True)
class _Flight:
    """One load, how many wait for it, and how many hold what came: it is one memory, however many they are."""

    plan: LoadPlan
    task: asyncio.Task[Fetched]
    waiters: int = 0
    holders: int = 0
    give_back: Callable[[], None] = field(default=lambda: None)


class PrefixLoader:
    def __init__(
        self,
        transport: BlockTransport,
        engine: Engine,
        limits: LoaderLimits,
        *,
        known: RecentHashes,
        metrics: ExecutorMetrics,
        clock: Clock,
        random: Random,
    ) -> None:
        """`known` learns what the store holds and what it does not."""
        self._limits, self._metrics, self._clock = limits, metrics, clock
        self._block_bytes = engine.info.block_bytes
        self._budget = Budget(limits.budget_bytes)
        self._fetcher = Fetcher(
            transport, engine, limits, budget=self._budget, known=known, metrics=metrics, clock=clock
        )
        self._breaker = Breaker(clock, random)
        self._flights: dict[tuple[bytes, bytes], _Flight] = {}

    @property
    def held_bytes(self) -> int:
        return self._budget.held_bytes

    def worth_asking(self, plan: LoadPlan) -> bool:
        """Cheap, and no promise: the store may hold nothing."""
        if len(plan.block_hashes) < self._limits.min_blocks:
            return False
        if plan.flight_key in self._flights:
            return True
        if len(self._flights) >= self._limits.max_loads or not self._has_room():
            self._metrics.loads.labels("no_room").inc()
            return False
        if not self._fetcher.worth_asking(len(plan.block_hashes)):
            self._metrics.decisions.labels("not_asked").inc()
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
            fetched = await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                self._abandon(flight)
        return self._hold(flight, plan, fetched)

    async def close(self) -> None:
        """Ends every load."""
        for flight in list(self._flights.values()):
            self._abandon(flight)
        await self._fetcher.close()

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

    async def _fly(self, plan: LoadPlan) -> Fetched:
        """Whatever goes wrong, fewer blocks come."""
        start = self._clock.monotonic()
        try:
            fetched = await self._fetcher.fetch(plan)
        except Exception as error:
            fetched = Fetched(error=error)
        self._note(fetched)
        if fetched.error is None:
            self._metrics.load_seconds.observe(self._clock.monotonic() - start)
        return fetched

    def _note(self, fetched: Fetched) -> None:
        """A store that sends something lives, even if it is slow or breaks off."""
        if fetched.error is None or fetched.blocks:
            self._breaker.succeeded()
        else:
            self._breaker.failed()
        self._metrics.loads.labels(_outcome(fetched)).inc()
        if fetched.error is not None and not isinstance(fetched.error, grpc.RpcError | DataCorrupt | TimeoutError):
            get_logger().error("kv_load_failed", exc_info=fetched.error)

    def _hold(self, flight: _Flight, plan: LoadPlan, fetched: Fetched) -> HeldPrefix | None:
        mine = fetched.blocks[: _common(plan.block_hashes, flight.plan.block_hashes)]
        if len(mine) < self._limits.min_blocks:
            return None
        if not flight.holders:
            flight.give_back = self._budget.take(len(fetched.blocks) * self._block_bytes)
        flight.holders += 1

        def release() -> None:
            flight.holders -= 1
            if not flight.holders:
                flight.give_back()

        return HeldPrefix(StoredPrefix(plan.first_block, mine), release, cut(fetched.ranges, len(mine)))

    def _has_room(self) -> bool:
        return self._budget.free_bytes >= self._limits.min_blocks * self._block_bytes


def _common(left: Sequence[bytes], right: Sequence[bytes]) -> int:
    """How many leading hashes are equal."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))


def _outcome(fetched: Fetched) -> str:
    """What ended it; some blocks may have come before."""
    match fetched.error:
        case None:
            return "hit" if fetched.blocks else "miss"
        case DataCorrupt():
            return "corrupt"
        case TimeoutError():
            return "late"
        case grpc.RpcError() as error if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return "late"
    return "failed"
