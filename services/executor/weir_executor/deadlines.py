"""Which requests have run out of time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from weir_chassis.clock import Clock

# How late a deadline may be noticed. A sweep over a thousand live requests takes about 50 µs, so this costs 0.2 % of a
# core at most, and the caller has a clock of its own.
_SWEEP_SECONDS = 0.025


class Deadlines:
    """Deadlines by key, as few as there are live requests. Used from one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at: dict[int, float] = {}
        self._any = asyncio.Event()

    def __len__(self) -> int:
        return len(self._at)

    def add(self, key: int, seconds: float) -> None:
        self._at[key] = self._clock.monotonic() + seconds
        self._any.set()

    def remove(self, key: int) -> None:
        self._at.pop(key, None)

    def sweep(self, expired: Callable[[int], None]) -> None:
        """Calls `expired(key)` once for each deadline that has passed."""
        now = self._clock.monotonic()
        for key in [key for key, at in self._at.items() if at <= now]:
            # One that expires may take others with it, whose time is then not over but gone.
            if self._at.pop(key, None) is not None:
                expired(key)

    async def run(self, expired: Callable[[int], None]) -> None:
        """Sweeps for ever, and sleeps while there is nothing to sweep."""
        while True:
            await self._any.wait()
            await self._clock.sleep(_SWEEP_SECONDS)
            self.sweep(expired)
            if not self._at:
                self._any.clear()
