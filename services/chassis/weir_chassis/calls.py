"""The calls that run now: what a drain waits for and, at its end, cuts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from weir_chassis.errors import Draining, WeirError

# Health and reflection answer to the last, and a watcher of health must not hold up a drain.
_INFRASTRUCTURE = "/grpc."


def is_infrastructure(method: str) -> bool:
    return method.startswith(_INFRASTRUCTURE)


class Calls:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._cut: dict[asyncio.Task[object], WeirError] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._count = 0

    def __len__(self) -> int:
        """How many run, health and reflection left out."""
        return self._count

    @contextmanager
    def running(self, method: str) -> Iterator[None]:
        """Counts this task as a call; refuses it when the service is draining."""
        if self._draining and not is_infrastructure(method):
            raise Draining("the service is shutting down and takes nothing new")
        task = asyncio.current_task()
        assert task is not None
        weight = 0 if is_infrastructure(method) else 1
        self._tasks.add(task)
        self._add(weight)
        try:
            yield
        finally:
            self._tasks.remove(task)
            self._add(-weight)

    def refuse_new(self) -> None:
        self._draining = True

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def cut(self, error: WeirError) -> int:
        """Ends every running call with this error. Returns how many there were."""
        for task in self._tasks:
            self._cut[task] = error
            task.cancel()
        return len(self)

    def why_cut(self) -> WeirError | None:
        """The error to answer with, when this task was cancelled by `cut` and not by its caller."""
        task = asyncio.current_task()
        assert task is not None
        return self._cut.pop(task, None)

    def _add(self, change: int) -> None:
        self._count += change
        assert self._count >= 0
        if self._count:
            self._idle.clear()
        else:
            self._idle.set()
