"""One load, from the question to the blocks: asked, decided, received in time, and learned from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import grpc

from weir_chassis.clock import Clock
from weir_chassis.errors import DataCorrupt
from weir_chassis.owed import Owed
from weir_executor.engine import Engine
from weir_executor.kv_transfer.budget import Budget
from weir_executor.kv_transfer.hashes import RecentHashes
from weir_executor.kv_transfer.outrun import outrun
from weir_executor.kv_transfer.plan import LoaderLimits, LoadPlan, TierRange
from weir_executor.kv_transfer.predictor import Computing, LoadPredictor, computing
from weir_executor.kv_transfer.race import Decision, Patience, Race, cut
from weir_executor.kv_transfer.transport import BlockTransport, Match, Payload
from weir_executor.metrics import ExecutorMetrics

# Giving a lease back is owed even to a store that is slow; it lapses by itself when this is too short.
_RELEASE_SECONDS = 5.0


@dataclass(slots=True)
class Fetched:
    """What came, verified, in order, from where; and what ended it, if it did not end by itself."""

    blocks: list[Payload] = field(default_factory=list)
    ranges: Sequence[TierRange] = ()
    error: Exception | None = None


class Fetcher:
    """Asks one store. Used from one event loop."""

    def __init__(
        self,
        transport: BlockTransport,
        engine: Engine,
        limits: LoaderLimits,
        *,
        budget: Budget,
        known: RecentHashes,
        metrics: ExecutorMetrics,
        clock: Clock,
    ) -> None:
        """`known` learns what the store holds and what it does not."""
        self._transport, self._engine, self._limits = transport, engine, limits
        self._block_bytes = engine.info.block_bytes
        self._budget, self._known, self._metrics, self._clock = budget, known, metrics, clock
        self._predictor = LoadPredictor(limits.bytes_per_second)
        self._race = Race(self._predictor, self._block_bytes, limits.min_blocks)
        self._owed = Owed("release-lease")

    def worth_asking(self, blocks: int) -> bool:
        return self._race.worth_asking(blocks, self._computing())

    async def fetch(self, plan: LoadPlan) -> Fetched:
        """Raises what kept the store from saying what it has; from then on, whatever goes wrong, fewer blocks come."""
        asked_at, computing = self._clock.monotonic(), self._computing()
        match = await self._match(plan, computing)
        matched = self._learn(plan, match)
        if match.lease_id is None:
            return Fetched()
        try:
            decision = self._decide(match, matched, computing)
            if not decision.blocks:
                return Fetched()
            now, most = self._clock.monotonic(), self._most_seconds(decision.blocks)
            patience = Patience(decision, computing.ahead, asked_at=asked_at, begins_at=now, most_seconds=most)
            return await self._get(match.lease_id, plan.block_hashes, decision, patience)
        finally:
            self._owed.start(self._release(match.lease_id))

    async def close(self) -> None:
        """Leases are given back as far as that goes within a moment; then they lapse."""
        await asyncio.sleep(0)  # loads that were just cancelled give theirs back
        await self._owed.close()

    def _computing(self) -> Computing:
        return computing(self._engine.load(), self._engine.info)

    def _most_seconds(self, blocks: int) -> float:
        return self._limits.deadline_seconds + blocks * self._block_bytes / self._limits.bytes_per_second

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _match(self, plan: LoadPlan, computing: Computing) -> Match:
        asked_at, timeout = self._clock.monotonic(), self._limits.deadline_seconds
        question = self._transport.match(
            plan.namespace,
            [*plan.local_hashes, *plan.block_hashes],
            skip_blocks=plan.first_block,
            block_size=self._engine.info.block_size,
            timeout=timeout,
        )
        asking = asyncio.create_task(question, name="match-prefix")
        answers_by = asked_at + min(timeout, self._race.answer_seconds(len(plan.block_hashes), computing))
        try:
            return await outrun(asyncio.shield(asking), lambda: answers_by - self._clock.monotonic(), self._clock)
        except BaseException:
            # The answer that nobody waits for any more may bring a lease.
            self._owed.start(self._release_unheard(asking))
            raise
        finally:
            self._predictor.note_match(self._clock.monotonic() - asked_at)

    def _learn(self, plan: LoadPlan, match: Match) -> int:
        """How many of the wanted blocks the store says it holds."""
        matched = min(max(0, match.matched_blocks - plan.first_block), len(plan.block_hashes))
        self._known.add(plan.block_hashes[:matched])
        self._known.discard(plan.block_hashes[matched:])
        return matched

    def _decide(self, match: Match, matched: int, computing: Computing) -> Decision:
        room = min(matched, self._budget.free_bytes // self._block_bytes)
        # Whatever the store says or does not say of its tiers, there is a range for each block.
        decision = self._race.decide(cut([*match.ranges, TierRange(matched, "")], room), computing)
        self._metrics.decisions.labels(_name(decision, matched)).inc()
        return decision

    # ── receiving ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _get(self, lease_id: str, hashes: Sequence[bytes], decision: Decision, patience: Patience) -> Fetched:
        fetched, marks = Fetched(ranges=decision.ranges), list[tuple[int, float]]()
        began_at = self._clock.monotonic()
        give_back = self._budget.take(decision.blocks * self._block_bytes)
        receiving = self._receive(lease_id, hashes[: decision.blocks], fetched, patience, marks)
        try:
            await outrun(receiving, lambda: patience.seconds_left(self._clock.monotonic()), self._clock)
        except (grpc.RpcError, DataCorrupt, TimeoutError) as error:
            fetched.error = error
        finally:
            give_back()
            self._metrics.load_bytes.inc(sum(map(len, fetched.blocks)))
        given_up_at = self._clock.monotonic() if isinstance(fetched.error, TimeoutError) else None
        self._predictor.note_load(
            decision.ranges, self._block_bytes, began_at=began_at, marks=marks, given_up_at=given_up_at
        )
        self._note_outcome(decision, fetched, self._clock.monotonic() - began_at)
        return fetched

    async def _receive(
        self,
        lease_id: str,
        wanted: Sequence[bytes],
        fetched: Fetched,
        patience: Patience,
        marks: list[tuple[int, float]],
    ) -> None:
        timeout = self._most_seconds(len(wanted))
        transfer = self._transport.get(lease_id, wanted, block_bytes=self._block_bytes, timeout=timeout)
        async with aclosing(transfer) as batches:
            async for blocks in batches:
                fetched.blocks += blocks
                now = self._clock.monotonic()
                patience.note(len(fetched.blocks), now)
                marks.append((len(fetched.blocks), now))

    def _note_outcome(self, decision: Decision, fetched: Fetched, seconds: float) -> None:
        if len(fetched.blocks) == decision.blocks:
            self._metrics.load_error.observe(seconds / decision.load.mean)
        if decision.compute is not None:
            self._metrics.saved_seconds.inc(decision.compute.mean * len(fetched.blocks) / decision.blocks)

    # ── leases ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _release_unheard(self, asking: asyncio.Task[Match]) -> None:
        with suppress(grpc.RpcError):
            match = await asking
            if match.lease_id is not None:
                await self._release(match.lease_id)

    async def _release(self, lease_id: str) -> None:
        try:
            await self._transport.release(lease_id, timeout=_RELEASE_SECONDS)
        except grpc.RpcError:
            self._metrics.loads.labels("lease_not_released").inc()


def _name(decision: Decision, matched: int) -> str:
    if decision.explores:
        return "explore"
    if not decision.blocks:
        return "compute"
    return "load" if decision.blocks == matched else "load_part"
