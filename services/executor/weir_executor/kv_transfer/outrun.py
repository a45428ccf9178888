"""Work that is given up when its time is over, by a clock that is passed in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from weir_chassis.clock import Clock

# How late it may be noticed that the time is over: progress may have moved the end either way.
_LOOK_SECONDS = 0.01
T = TypeVar("T")


async def outrun(work: Awaitable[T], seconds_left: Callable[[], float], clock: Clock) -> T:
    """What `work` comes to. Cancels it and raises TimeoutError once `seconds_left` says that none are."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if (left := seconds_left()) <= 0:
                raise TimeoutError
            await _either(task, min(left, _LOOK_SECONDS), clock)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _either(task: asyncio.Future[Any], seconds: float, clock: Clock) -> None:
    timer: asyncio.Future[Any] = asyncio.create_task(clock.sleep(seconds))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()
