"""Work ends when it is done, when its time is over, or when nobody waits for it, and does not go on unseen."""

from __future__ import annotations

import asyncio

import pytest

from weir_chassis.testing import VirtualClock, settle
from weir_executor.kv_transfer.outrun import outrun


async def test_what_is_done_in_time_is_had() -> None:
    clock = VirtualClock()

    async def work() -> int:
        await clock.sleep(0.5)
        return 7

    task = asyncio.create_task(outrun(work(), lambda: 1.0 - clock.monotonic(), clock))
    await clock.advance(0.6)
    assert await task == 7


async def test_what_is_late_is_cancelled() -> None:
    clock, ended = VirtualClock(), list[float]()

    async def work() -> None:
        try:
            await clock.sleep(100.0)
        finally:
            ended.append(clock.monotonic())

    task = asyncio.create_task(outrun(work(), lambda: 1.0 - clock.monotonic(), clock))
    await clock.advance(1.02)
    with pytest.raises(TimeoutError):
        await task
    assert 1.0 <= ended[0] <= 1.02


async def test_an_end_that_moves_is_followed_either_way() -> None:
    clock, ends_at = VirtualClock(), 1.0
    task = asyncio.create_task(outrun(clock.sleep(100.0), lambda: ends_at - clock.monotonic(), clock))
    await clock.advance(0.9)
    ends_at = 5.0
    await clock.advance(1.0)
    assert not task.done()
    ends_at = 2.0
    await clock.advance(0.15)
    assert isinstance(task.exception(), TimeoutError)


async def test_its_own_error_is_told_and_a_cancelled_caller_takes_it_along() -> None:
    clock = VirtualClock()

    async def fail() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await outrun(fail(), lambda: 1.0, clock)
    inner = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(outrun(inner, lambda: 1.0, clock))
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled()
    assert inner.cancelled()
