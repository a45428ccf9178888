"""A bounded share of bandwidth: so many bytes a second, however many take from it."""

from __future__ import annotations

from weir_chassis.clock import Clock


class Bandwidth:
    """Whoever takes bytes waits until those before have had their time."""

    def __init__(self, clock: Clock, bytes_per_second: float | None) -> None:
        """None: no limit."""
        self._clock = clock
        self._next_at = clock.monotonic()
        self.bytes_per_second = bytes_per_second

    async def take(self, size_bytes: int) -> None:
        if self.bytes_per_second is None:
            return
        start = max(self._next_at, self._clock.monotonic())
        self._next_at = start + size_bytes / self.bytes_per_second
        await self._clock.sleep(start - self._clock.monotonic())
