"""Time, passed in. Whoever waits or measures takes a `Clock`; whoever draws takes a `random.Random`.

`testing.VirtualClock` is the other implementation: it moves only when a test moves it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds from an unknown start. For measuring and for deadlines; never goes back."""
        ...

    def time(self) -> float:
        """Seconds since the Unix epoch. For what people and other machines read."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds`, or at once when that is not positive."""
        ...


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
