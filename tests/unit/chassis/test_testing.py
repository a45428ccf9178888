"""The doubles have tests of their own."""

from __future__ import annotations

import asyncio

from weir_chassis.clock import Clock, SystemClock
from weir_chassis.testing import VirtualClock


async def test_sleepers_wake_in_order_at_their_own_time() -> None:
    clock, woken = VirtualClock(), list[tuple[str, float]]()

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await clock.sleep(nap)
            woken.append((name, clock.monotonic()))

    tasks = [asyncio.ensure_future(sleeper("a", 3, 3)), asyncio.ensure_future(sleeper("b", 1, 1, 5))]
    await clock.advance(10)
    await asyncio.gather(*tasks)
    assert woken == [("b", 1), ("b", 2), ("a", 3), ("a", 6), ("b", 7)]
    assert clock.monotonic() == 10


async def test_time_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock(start=5.0, epoch=100.0)
    task = asyncio.ensure_future(clock.sleep(1))
    await asyncio.sleep(0)
    assert clock.sleeping == 1
    assert (clock.monotonic(), clock.time()) == (5.0, 105.0)
    await clock.advance(0.999)
    assert not task.done()
    await clock.advance(0.001)
    assert task.done()


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = VirtualClock()
    task = asyncio.ensure_future(clock.sleep(1))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.sleeping == 0
    await clock.advance(2)


async def test_a_sleep_of_nothing_lets_others_run() -> None:
    for clock in (VirtualClock(), SystemClock()):
        await _nap(clock)


async def _nap(clock: Clock) -> None:
    ran: list[int] = []
    asyncio.get_running_loop().call_soon(ran.append, 1)
    await clock.sleep(0)
    await clock.sleep(-1)
    assert ran == [1]


def test_the_system_clock_tells_the_time() -> None:
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
    assert clock.time() > 1_600_000_000
