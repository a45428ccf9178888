"""What a call owes to another service when it is over, however it ends: a lease to give back, a word to say."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

# What is not done a moment after the end is left: leases lapse by themselves.
_CLOSE_SECONDS = 1.0


class Owed:
    """Tasks of their own, because a call that is cancelled owes them just the same.

    Each ends by its own call's clock, and keeps to itself what goes wrong: nobody waits for it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, courtesy: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(courtesy, name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def close(self) -> None:
        """Waits a moment for what is under way, and cancels the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # asked for, so that asyncio does not complain that nobody has
