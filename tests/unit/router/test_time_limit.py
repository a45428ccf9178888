"""One timer ends a request: at its deadline, or earlier with another's reason."""

from __future__ import annotations

import asyncio

import pytest

from weir_chassis.errors import DeadlineExceeded, SlowConsumer
from weir_router.time_limit import time_limit


async def test_the_deadline_ends_what_is_awaited() -> None:
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        async with time_limit(0.01):
            await asyncio.Event().wait()


async def test_a_cut_ends_it_at_once_with_its_own_error() -> None:
    with pytest.raises(SlowConsumer):
        async with time_limit(None) as limit:
            asyncio.get_running_loop().call_soon(limit.cut, SlowConsumer("slow"))
            await asyncio.Event().wait()


async def test_a_cut_does_not_hide_an_error_that_is_on_its_way() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with time_limit(60) as limit:
            limit.cut(SlowConsumer("slow"))
            raise ValueError("mine")


async def test_a_timeout_of_somebody_else_stays_what_it_is() -> None:
    with pytest.raises(TimeoutError):
        async with time_limit(60):
            raise TimeoutError


async def test_a_cancellation_stays_a_cancellation() -> None:
    async def work() -> None:
        async with time_limit(60):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
