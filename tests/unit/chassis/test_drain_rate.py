"""How long a refused caller is told to wait."""

from __future__ import annotations

import pytest

from weir_chassis.drain_rate import DrainRate
from weir_chassis.testing import VirtualClock


async def steady(clock: VirtualClock, rate: DrainRate, per_second: int, seconds: int) -> None:
    for _ in range(per_second * seconds):
        await clock.advance(1 / per_second)
        rate.ended(1)


async def test_the_rate_is_what_was_measured() -> None:
    clock = VirtualClock()
    rate = DrainRate(clock)
    assert rate.per_second() == 0
    await steady(clock, rate, per_second=4, seconds=20)
    assert rate.per_second() == pytest.approx(4, rel=0.1)


async def test_the_rate_is_of_now() -> None:
    clock = VirtualClock()
    rate = DrainRate(clock)
    await steady(clock, rate, per_second=20, seconds=5)
    await clock.advance(11)
    assert rate.per_second() == 0


async def test_refused_callers_are_spread_over_the_places_that_free() -> None:
    clock = VirtualClock()
    rate = DrainRate(clock)
    await steady(clock, rate, per_second=2, seconds=20)
    waits = [rate.refuse().total_seconds() for _ in range(3)]
    assert waits == pytest.approx([0.5, 1.0, 1.5], rel=0.1)
    rate.ended(3)
    assert rate.refuse().total_seconds() == pytest.approx(0.5, rel=0.25)


async def test_the_wait_has_bounds() -> None:
    clock = VirtualClock()
    rate = DrainRate(clock)
    assert rate.refuse().total_seconds() == 1, "nothing is known yet"
    await clock.advance(10)
    rate.ended(1)
    for _ in range(1000):
        longest = rate.refuse()
    assert longest.total_seconds() == 30
    rate.ended(100_000)
    assert rate.refuse().total_seconds() == 0.05


@pytest.mark.parametrize(("ended", "refused", "expected"), [(0, 1, 1), (100_000, 1, 0.1), (1, 1000, 60)])
async def test_the_bounds_may_be_the_callers(ended: int, refused: int, expected: float) -> None:
    clock = VirtualClock()
    rate = DrainRate(clock, shortest_seconds=0.1, longest_seconds=60)
    await clock.advance(10)
    rate.ended(ended)
    waits = [rate.refuse().total_seconds() for _ in range(refused)]
    assert waits[-1] == expected
