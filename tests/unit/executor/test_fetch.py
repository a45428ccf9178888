"""One load by a virtual clock: what comes in time is had, and however a store behaves, the stated deadline holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir_chassis.clock import Clock
from weir_chassis.errors import DataCorrupt
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock
from weir_executor.engine import EngineLoad
from weir_executor.estimate import Estimate
from weir_executor.fake import FakeEngine
from weir_executor.kv_transfer.budget import Budget
from weir_executor.kv_transfer.fetch import Fetched, Fetcher
from weir_executor.kv_transfer.hashes import RecentHashes
from weir_executor.kv_transfer.plan import LoaderLimits, LoadPlan, TierRange
from weir_executor.kv_transfer.transport import Match, Payload, Put, PutResult
from weir_executor.metrics import ExecutorMetrics

HASHES = [bytes([i]) * 16 for i in range(40)]
BLOCK_BYTES = 64  # of the fake engine
LIMITS = LoaderLimits(deadline_seconds=0.25, bytes_per_second=1e5, min_blocks=2, budget_bytes=1 << 20, max_loads=4)
TOKEN_SECONDS = 0.001  # so a block of 16 takes 16 ms to compute
# How late the end of time may be noticed, and the virtual clock's own steps.
SLACK = 0.03


@dataclass
class Script:
    """A `BlockTransport` that takes its time as it is told: before the answer, and before each block."""

    clock: Clock
    answer_seconds: float = 0.002
    pauses: Sequence[float] = (0.001,) * 40
    tiers: Sequence[TierRange] = ()
    ends_with: Exception | None = None
    leases: set[str] = field(default_factory=set)
    asked_for: int = 0

    async def match(
        self, namespace: bytes, block_hashes: Sequence[bytes], *, skip_blocks: int, block_size: int, timeout: float
    ) -> Match:
        await self.clock.sleep(self.answer_seconds)
        self.leases.add("lease")
        return Match(len(block_hashes), "lease", self.tiers)

    async def get(
        self, lease_id: str, wanted: Sequence[bytes], *, block_bytes: int, timeout: float
    ) -> AsyncGenerator[Sequence[Payload], None]:
        self.asked_for = len(wanted)
        for pause, block_hash in zip(self.pauses, wanted, strict=False):
            await self.clock.sleep(pause)
            yield [block_hash * 4]
        if self.ends_with is not None:
            raise self.ends_with

    async def put(self, put: Put, *, timeout: float) -> PutResult:
        raise AssertionError("nothing is put")

    async def release(self, lease_id: str, *, timeout: float) -> None:
        self.leases.remove(lease_id)

    async def close(self) -> None:
        """Holds nothing."""


class Bench:
    def __init__(self, *, token_seconds: float | None = TOKEN_SECONDS, ahead_tokens: int = 0) -> None:
        self.clock = VirtualClock()
        self.script = Script(self.clock)
        self.metrics = Metrics("executor")
        self.budget = Budget(LIMITS.budget_bytes)
        engine = FakeEngine()
        load = EngineLoad(
            1, 0, 0, 9, 9, 0, 0, 0, 0.0,
            outstanding_prefill_tokens=ahead_tokens,
            prefill_token_seconds=None if token_seconds is None else Estimate(token_seconds),
        )  # fmt: skip
        engine.load = lambda: load  # type: ignore[method-assign]
        self.fetcher = Fetcher(
            self.script,
            engine,
            LIMITS,
            budget=self.budget,
            known=RecentHashes(),
            metrics=ExecutorMetrics(self.metrics),
            clock=self.clock,
        )

    async def fetch(self, blocks: int = 40) -> tuple[Fetched, float]:
        """What came, and after how many seconds. Nothing is held then."""
        start = self.clock.monotonic()
        task = asyncio.create_task(self.fetcher.fetch(LoadPlan(b"n" * 16, (), HASHES[:blocks])))
        while not task.done():
            await self.clock.advance(0.002)
        took = self.clock.monotonic() - start
        try:
            fetched = task.result()
        except TimeoutError as error:
            fetched = Fetched(error=error)
        await self.clock.advance(100.0)  # for a late answer, whose lease is given back too
        assert not self.script.leases
        assert self.budget.held_bytes == 0
        assert [bytes(block) for block in fetched.blocks] == [h * 4 for h in HASHES[: len(fetched.blocks)]]
        return fetched, took

    def decided(self) -> dict[str, float]:
        return {
            sample.labels["decision"]: sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "weir_executor_kv_decisions_total"
        }

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"weir_executor_{name}") or 0.0


async def test_what_is_fast_is_loaded_and_counted() -> None:
    bench = Bench()
    fetched, took = await bench.fetch()
    assert (len(fetched.blocks), fetched.error) == (40, None)
    assert took == pytest.approx(0.042, abs=0.005)
    assert bench.decided() == {"load": 1}
    assert bench.value("kv_saved_seconds_total") == pytest.approx(40 * 16 * TOKEN_SECONDS)
    assert bench.value("kv_load_error_count") == 1


async def test_a_slow_tier_is_learned_and_then_left_alone() -> None:
    bench = Bench()
    bench.script.tiers = [TierRange(30, "ram"), TierRange(10, "disk")]
    bench.script.pauses = [0.001] * 30 + [0.03] * 10
    asked_for = []
    for _ in range(6):
        await bench.fetch()
        asked_for.append(bench.script.asked_for)
    assert asked_for[0] == 40
    assert asked_for[-1] == 30
    assert set(bench.decided()) == {"load", "load_part"}


async def test_a_load_that_stalls_is_given_up_and_what_came_is_used() -> None:
    bench = Bench()
    bench.script.pauses = [0.001] * 35 + [100.0]
    fetched, took = await bench.fetch()
    assert len(fetched.blocks) == 35
    assert isinstance(fetched.error, TimeoutError)
    assert took < 0.002 + 0.035 + 5 * 16 * TOKEN_SECONDS + SLACK, "as long as computing the rest takes, and no longer"
    assert bench.value("kv_load_error_count") == 0


async def test_what_a_load_that_breaks_off_brought_is_used() -> None:
    bench = Bench()
    bench.script.pauses, bench.script.ends_with = [0.001] * 7, DataCorrupt("not next")
    fetched, _ = await bench.fetch()
    assert (len(fetched.blocks), fetched.error) == (7, bench.script.ends_with)


async def test_a_store_that_does_not_answer_costs_no_more_than_computing() -> None:
    bench = Bench()
    bench.script.answer_seconds = 50.0
    fetched, took = await bench.fetch(blocks=10)
    assert isinstance(fetched.error, TimeoutError)
    assert took < 10 * 16 * TOKEN_SECONDS + SLACK


async def test_before_anything_was_computed_the_setting_is_the_deadline() -> None:
    bench = Bench(token_seconds=None)
    bench.script.pauses = [0.001, 100.0]
    fetched, took = await bench.fetch(blocks=10)
    assert len(fetched.blocks) == 1
    assert took == pytest.approx(LIMITS.deadline_seconds + 10 * BLOCK_BYTES / LIMITS.bytes_per_second, abs=SLACK)
    assert bench.value("kv_saved_seconds_total") == 0.0


async def test_a_caller_who_leaves_leaves_nothing_behind() -> None:
    bench = Bench()
    for seconds in (0.001, 0.01):
        task = asyncio.create_task(bench.fetcher.fetch(LoadPlan(b"n" * 16, (), HASHES)))
        await bench.clock.advance(seconds)
        task.cancel()
        await bench.clock.advance(1.0)
        assert task.cancelled()
        assert not bench.script.leases
        assert bench.budget.held_bytes == 0
    await bench.fetcher.close()


async def test_a_store_that_talks_nonsense_about_its_tiers_is_loaded_from_all_the_same() -> None:
    bench = Bench()
    for tiers in ([], [TierRange(0, "a")] * 3, [TierRange(10**9, "a")], [TierRange(3, "a"), TierRange(2, "b")]):
        bench.script.tiers = tiers
        fetched, _ = await bench.fetch()
        assert len(fetched.blocks) == 40


@settings(max_examples=40)
@given(
    answer=st.floats(0.0, 0.4),
    pauses=st.lists(st.sampled_from([0.0, 0.001, 0.005, 0.02, 0.1, 1.0, 100.0]), max_size=40),
    ahead_tokens=st.integers(0, 300),
    token_seconds=st.none() | st.floats(1e-5, 0.01),
    blocks=st.integers(2, 40),
)
def test_whatever_the_store_does_the_stated_deadline_holds(
    answer: float, pauses: list[float], ahead_tokens: int, token_seconds: float | None, blocks: int
) -> None:
    """Time to first token with a store ≤ without one, plus what computing what was waited for takes; and ≤ without
    one, plus the setting's deadline."""

    async def run() -> None:
        bench = Bench(token_seconds=token_seconds, ahead_tokens=ahead_tokens)
        bench.script.answer_seconds, bench.script.pauses = answer, pauses
        fetched, took = await bench.fetch(blocks)
        asked_for = bench.script.asked_for or blocks
        most = LIMITS.deadline_seconds + asked_for * BLOCK_BYTES / LIMITS.bytes_per_second
        assert took <= most + SLACK
        if token_seconds is not None:
            usual_answer = 0.0075  # what is thought of a store that never answered
            assert took <= max(usual_answer, (ahead_tokens + 16 * blocks) * token_seconds) + SLACK
        came_by = list(accumulate(pauses, initial=answer))[len(fetched.blocks)]
        assert not fetched.blocks or came_by <= took + SLACK

    asyncio.run(run())
