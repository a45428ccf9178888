from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from unit.tokenizer.conftest import until
from weir_chassis.clock import SystemClock
from weir_chassis.errors import Overloaded
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock, assert_no_leases
from weir_tokenizer.work_pool import LEASE_KIND, PoolLimits, WorkPool


@pytest.fixture
def leases() -> LeaseLedger:
    return LeaseLedger()


@pytest.fixture
async def pool(leases: LeaseLedger) -> AsyncIterator[WorkPool]:
    async with WorkPool(PoolLimits(threads=1, max_jobs=3, max_bytes=100), leases, SystemClock()) as pool:
        yield pool
    assert_no_leases(leases)


class Gate:
    """A job that runs until it is let go."""

    def __init__(self) -> None:
        self.started, self._go = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.started.set()
        assert self._go.wait(10)
        return "done"

    def open(self) -> None:
        self._go.set()


async def start(pool: WorkPool, job: Callable[[], object], size_bytes: int = 1) -> asyncio.Task[object]:
    task: asyncio.Task[object] = asyncio.create_task(pool.run(job, size_bytes=size_bytes, owner="r"))
    await asyncio.sleep(0)
    return task


async def test_a_job_runs_off_the_event_loop(pool: WorkPool, leases: LeaseLedger) -> None:
    assert await pool.run(threading.get_ident, size_bytes=1, owner="r") != threading.get_ident()
    await until(lambda: not leases.live())


async def test_what_a_job_raises_is_raised(pool: WorkPool) -> None:
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0, size_bytes=1, owner="r")


async def test_the_jobs_are_bounded(pool: WorkPool, leases: LeaseLedger) -> None:
    gate = Gate()
    tasks = [await start(pool, gate) for _ in range(3)]
    assert leases.counts() == {LEASE_KIND: 3}
    with pytest.raises(Overloaded) as caught:
        await pool.run(gate, size_bytes=1, owner="r")
    assert caught.value.retry_after == timedelta(seconds=1), "nothing was measured yet"
    gate.open()
    assert await asyncio.gather(*tasks) == ["done"] * 3
    await until(lambda: not leases.live())
    assert await pool.run(gate, size_bytes=1, owner="r") == "done"


async def test_the_bytes_are_bounded_too(pool: WorkPool) -> None:
    gate = Gate()
    task = await start(pool, gate, 60)
    with pytest.raises(Overloaded):
        await pool.run(gate, size_bytes=41, owner="r")
    fits = await start(pool, gate, 40)
    gate.open()
    assert [await task, await fits] == ["done", "done"]


async def test_an_idle_pool_takes_a_job_of_any_size(pool: WorkPool) -> None:
    assert await pool.run(lambda: 1, size_bytes=1000, owner="r") == 1


async def test_a_cancelled_job_that_waits_never_runs(pool: WorkPool, leases: LeaseLedger) -> None:
    gate, ran = Gate(), threading.Event()
    running = await start(pool, gate)
    waiting = await start(pool, ran.set)
    waiting.cancel()
    await until(lambda: leases.counts() == {LEASE_KIND: 1})
    gate.open()
    await running
    assert not ran.is_set()


async def test_a_cancelled_job_that_runs_keeps_its_place_until_it_is_done(pool: WorkPool, leases: LeaseLedger) -> None:
    gate = Gate()
    running = await start(pool, gate)
    await until(gate.started.is_set)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert leases.counts() == {LEASE_KIND: 1}
    gate.open()
    await until(lambda: not leases.live())


async def test_closing_waits_for_what_runs_and_drops_what_waits(leases: LeaseLedger) -> None:
    gate = Gate()
    pool = WorkPool(PoolLimits(threads=1, max_jobs=3, max_bytes=100), leases, SystemClock())
    running, waiting = await start(pool, gate), await start(pool, gate)
    await until(gate.started.is_set)
    asyncio.get_running_loop().call_later(0.02, gate.open)
    await pool.__aexit__(None, None, None)
    assert await running == "done"
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert_no_leases(leases)


@pytest.mark.parametrize(
    ("pace_seconds", "jobs", "refusals", "expected"),
    [(0.5, 40, 1, 0.5), (0.5, 40, 3, 1.5), (0.001, 1000, 1, 0.05), (5.0, 4, 9, 10.0)],
)
async def test_the_time_to_come_back_follows_the_measured_pace(
    leases: LeaseLedger, pace_seconds: float, jobs: int, refusals: int, expected: float
) -> None:
    clock = VirtualClock()
    async with WorkPool(PoolLimits(threads=1, max_jobs=1, max_bytes=100), leases, clock) as pool:
        for _ in range(jobs):
            await clock.advance(pace_seconds)
            await pool.run(int, size_bytes=1, owner="r")
            await until(lambda: not leases.live())
        gate = Gate()
        task = await start(pool, gate)
        for _ in range(refusals):
            with pytest.raises(Overloaded) as caught:
                await pool.run(gate, size_bytes=1, owner="r")
        gate.open()
        await task
    assert caught.value.retry_after is not None
    assert caught.value.retry_after.total_seconds() == pytest.approx(expected, rel=0.1)
