"""What is asked for in the same turn of the event loop is asked for in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

# One call's worth: enough that a round trip is nothing beside it, and few enough to be held in memory at once.
_AT_ONCE: Final = 16


class Together(Generic[K, V]):
    def __init__(self, ask: Callable[[Sequence[K]], Awaitable[Sequence[V | None]]]) -> None:
        """`ask` gives one answer for each of at most 16 keys, in order, in a time of its own. It raises nothing."""
        self._ask = ask
        self._waiting: list[tuple[K, asyncio.Future[V | None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: K) -> V | None:
        """Also None when this is closed before the answer has come."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V | None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((key, future))
        return await future

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), _AT_ONCE):
            task = asyncio.create_task(self._answer(waiting[start : start + _AT_ONCE]), name="ask-together")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, batch: Sequence[tuple[K, asyncio.Future[V | None]]]) -> None:
        answers: Sequence[V | None] = [None] * len(batch)
        try:
            answers = await self._ask([key for key, _ in batch])
        finally:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # whoever asked may be gone
                    future.set_result(answer)
