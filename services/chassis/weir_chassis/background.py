"""Every task has an owner. This one owns those that outlive a call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from types import TracebackType
from typing import Any, Self

from weir_chassis.telemetry import get_logger

# Before Python 3.13, a TaskGroup whose tasks fail while it is cancelled raises their errors and loses the cancellation,
# so it is repeated. A task that outlives all of these is stuck, and must not keep the process.
_CANCEL_TRIES, _CANCEL_SECONDS = 10, 0.5


class Background:
    """Runs tasks until it is left; then cancels them and waits for each.

    A task that raises is logged and remembered in `failure`, and `failed` is set: the server stops the process on it,
    because a service whose loop has died looks healthy and does nothing. A task that returns is simply done.
    """

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        assert not self._closed, f"background is closed; {name} cannot start"
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    @property
    def closed(self) -> bool:
        """Nothing can be started any more."""
        return self._closed

    def __len__(self) -> int:
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        for _ in range(_CANCEL_TRIES):
            if not self._tasks:
                return
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(list(self._tasks), timeout=_CANCEL_SECONDS)
        if self._tasks:
            get_logger().error("background_tasks_left", tasks=sorted(task.get_name() for task in self._tasks))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        get_logger().error("background_task_failed", task=task.get_name(), exc_info=error)
        self.failure = self.failure or error
        self.failed.set()


async def first_of(*waits: Awaitable[object]) -> None:
    """Returns when one of them does, and cancels the others. Raises what that one raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
