"""One timer for a whole request: its deadline, or an earlier end that somebody else decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from weir_chassis.errors import DeadlineExceeded, WeirError


class TimeLimit:
    """Handed to whoever may have to end a request whose own task is stuck in a write."""

    def __init__(self, timeout: asyncio.Timeout):
        self._timeout = timeout
        self.error: WeirError | None = None

    def cut(self, error: WeirError) -> None:
        """Ends the request now, with this error instead of the deadline's."""
        self.error = error
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())


@asynccontextmanager
async def time_limit(seconds: float | None) -> AsyncIterator[TimeLimit]:
    """Raises DeadlineExceeded, or the error that it was cut with, inside whatever is awaited when the time is over."""
    timeout = asyncio.timeout(seconds)
    limit = TimeLimit(timeout)
    try:
        async with timeout:
            yield limit
    except TimeoutError:
        if not timeout.expired():
            raise
        raise limit.error or DeadlineExceeded(f"the request was not done within its {seconds:g} s") from None
