"""How a fake worker fails, by name and on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import TypeVar

from weir_chassis.errors import WeirError, WorkerLost

T = TypeVar("T")


class Crash:
    """While it is down, every call to the worker fails, the streams that live included."""

    def __init__(self) -> None:
        self._down = asyncio.Event()
        self._error: WeirError = WorkerLost("the fake worker has crashed")

    def crash(self, error: WeirError | None = None) -> None:
        """`error`: what its calls end with; unset: as those of a worker that died."""
        self._error = error or WorkerLost("the fake worker has crashed")
        self._down.set()

    def revive(self) -> None:
        self._down = asyncio.Event()

    @property
    def down(self) -> bool:
        return self._down.is_set()

    def check(self) -> None:
        if self._down.is_set():
            raise self._error

    async def wait(self) -> None:
        """For a stream: returns when the worker crashes."""
        await self._down.wait()

    async def guard(self, messages: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        """The messages of a stream; raises when the worker crashes while one is waited for."""
        down = asyncio.create_task(self._down.wait())
        try:
            while True:
                read = asyncio.ensure_future(anext(messages, None))
                try:
                    await asyncio.wait({read, down}, return_when=asyncio.FIRST_COMPLETED)
                    self.check()
                finally:
                    if not read.done():
                        read.cancel()
                        with suppress(asyncio.CancelledError):
                            await read
                if (message := read.result()) is None:
                    return
                yield message
        finally:
            down.cancel()
