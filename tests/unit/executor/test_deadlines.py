"""Deadlines pass once, in time, and not after their request."""

from __future__ import annotations

import asyncio

from weir_chassis.background import Background
from weir_chassis.testing import VirtualClock
from weir_executor.deadlines import Deadlines


async def test_a_deadline_passes_once() -> None:
    clock, expired = VirtualClock(), list[int]()
    deadlines = Deadlines(clock)
    async with Background() as background:
        background.start(deadlines.run(expired.append), name="sweep")
        deadlines.add(1, 1.0)
        deadlines.add(2, 2.0)
        deadlines.add(3, 1.0)
        deadlines.remove(3)
        await clock.advance(0.9)
        assert expired == []
        await clock.advance(0.2)
        assert expired == [1]
        await clock.advance(10)
        assert expired == [1, 2]
        assert len(deadlines) == 0


async def test_it_sleeps_while_there_is_nothing_to_watch() -> None:
    clock = VirtualClock()
    deadlines = Deadlines(clock)
    async with Background() as background:
        background.start(deadlines.run(lambda _: None), name="sweep")
        await asyncio.sleep(0)
        assert clock.sleeping == 0
        deadlines.add(1, 0.01)
        await clock.advance(1)
        assert clock.sleeping == 0
        assert len(deadlines) == 0


async def test_one_that_expires_may_take_another_with_it() -> None:
    clock, expired = VirtualClock(), list[int]()
    deadlines = Deadlines(clock)
    deadlines.add(1, 1.0)
    deadlines.add(2, 1.0)
    await clock.advance(1)

    def note(key: int) -> None:
        expired.append(key)
        deadlines.remove(1)
        deadlines.remove(2)

    deadlines.sweep(note)
    deadlines.sweep(note)
    assert expired == [1]
    assert len(deadlines) == 0
