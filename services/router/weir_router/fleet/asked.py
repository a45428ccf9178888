"""Calls that wait for one worker's answer, which they are not to wait for when it is silent about everything.

A client's deadline may be far away, and a worker that hangs holds its connections open. So whoever watches the worker
gives up the calls to it, and each of them can be made to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from weir_chassis.errors import WorkerLost

T = TypeVar("T")


class Asked:
    """As many calls as there are requests between admission and their end."""

    def __init__(self, kind: str, address: str) -> None:
        self._kind, self._address = kind, address
        # The tasks that wait; and those of them that have been cancelled here.
        self._waiting: set[asyncio.Task[Any]] = set()
        self._given_up: set[asyncio.Task[Any]] = set()
        self._silent_seconds = 0.0

    async def answer(self, call: Awaitable[T]) -> T:
        """What the call returns or raises. Raises WorkerLost when it is given up."""
        task = asyncio.current_task()
        assert task is not None, "a call is waited for by a task"
        self._waiting.add(task)
        try:
            return await call
        except asyncio.CancelledError:
            if task not in self._given_up or task.uncancel():
                raise  # its client has gone, perhaps too
            message = f"{self._kind} {self._address} was lost: it has answered nothing for {self._silent_seconds:.0f} s"
            raise WorkerLost(message, metadata={"worker": self._address}) from None
        finally:
            self._waiting.discard(task)
            self._given_up.discard(task)

    def give_up(self, silent_seconds: float) -> None:
        """The worker has been silent for so long."""
        self._silent_seconds = silent_seconds
        for task in self._waiting - self._given_up:
            self._given_up.add(task)
            task.cancel()

    def __len__(self) -> int:
        return len(self._waiting)
