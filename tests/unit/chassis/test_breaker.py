"""A dead store is asked ever more seldom, and a store that is back is used at once."""

from __future__ import annotations

from random import Random

import pytest

from weir_chassis.breaker import Breaker
from weir_chassis.testing import VirtualClock


def opened(clock: VirtualClock) -> Breaker:
    breaker = Breaker(clock, Random(1))
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    return breaker


async def test_a_failure_or_two_are_chance() -> None:
    breaker = Breaker(VirtualClock(), Random(1))
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        assert breaker.allows()
        breaker.succeeded()
    assert not breaker.open


async def test_three_in_a_row_open_it() -> None:
    breaker = opened(VirtualClock())
    assert breaker.open
    assert not breaker.allows()


async def test_calls_that_fail_together_are_one_failure() -> None:
    """Sixteen loads under way when the store dies must not make the first pause the longest."""
    clock = VirtualClock()
    breaker = opened(clock)
    for _ in range(13):
        breaker.failed()
    await clock.advance(1.0)
    assert breaker.allows()
    breaker.failed()
    breaker.failed()
    await clock.advance(2.0)
    assert breaker.allows(), "the trial failed once, so the pause has doubled once"


async def test_one_trial_at_a_time() -> None:
    clock = VirtualClock()
    breaker = opened(clock)
    await clock.advance(1.0)
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True, True, True]


async def test_a_trial_whose_end_nobody_tells_holds_nobody_up() -> None:
    clock = VirtualClock()
    breaker = opened(clock)
    for _ in range(5):
        await clock.advance(1.0)
        assert breaker.allows()


async def test_the_pauses_double_up_to_a_bound() -> None:
    clock = VirtualClock()
    breaker = opened(clock)
    pauses = []
    for _ in range(9):
        start = clock.monotonic()
        while not breaker.allows():
            await clock.advance(0.1)
        pauses.append(clock.monotonic() - start)
        breaker.failed()
    for pause, longest in zip(pauses, [1, 2, 4, 8, 16, 30, 30, 30, 30], strict=True):
        assert pause == pytest.approx(longest * 0.75, rel=0.4)
    breaker.succeeded()
    assert breaker.allows()
