"""How much happens per second: of now, and in few samples."""

from __future__ import annotations

import pytest

from weir_chassis.rate import Rate
from weir_chassis.testing import VirtualClock


async def test_a_rate_is_of_what_was_counted_lately() -> None:
    clock = VirtualClock()
    rate = Rate(clock)
    rate.add(7)
    assert rate.per_second() == 0, "no time has passed"
    for _ in range(100):
        await clock.advance(0.2)
        rate.add(10)
    assert rate.per_second() == pytest.approx(50, rel=0.05)
    await clock.advance(11)
    assert rate.per_second() == 0


async def test_samples_are_few_however_much_is_counted() -> None:
    clock = VirtualClock()
    rate = Rate(clock)
    for _ in range(2000):
        await clock.advance(0.01)
        rate.add(1)
    assert len(rate._samples) <= 101
    assert rate.per_second() == pytest.approx(100, rel=0.05)
