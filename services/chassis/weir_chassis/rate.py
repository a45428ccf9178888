"""How much of something happens per second, lately."""

from __future__ import annotations

from collections import deque

from weir_chassis.clock import Clock

_WINDOW_SECONDS = 10.0  # long enough to see a few requests end, short enough to follow a change of load
# At most one sample per tenth of a second is kept, so the window holds at most a hundred.
_SAMPLE_SECONDS = 0.1


class Rate:
    """Counts over a window that moves. Used from one event loop; not locked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = clock.monotonic()
        self._samples: deque[tuple[float, int]] = deque()  # (when, how many since the sample before)
        self._in_window = 0

    def add(self, count: int) -> None:
        now = self._clock.monotonic()
        if self._samples and now - self._samples[-1][0] < _SAMPLE_SECONDS:
            when, before = self._samples[-1]
            self._samples[-1] = (when, before + count)
        else:
            self._samples.append((now, count))
        self._in_window += count
        self._forget(now)

    def per_second(self) -> float:
        """0 when nothing was counted in the window, or when no time has passed."""
        now = self._clock.monotonic()
        self._forget(now)
        elapsed = min(_WINDOW_SECONDS, now - self._started)
        return self._in_window / elapsed if elapsed > 0 else 0.0

    def _forget(self, now: float) -> None:
        while self._samples and self._samples[0][0] <= now - _WINDOW_SECONDS:
            self._in_window -= self._samples.popleft()[1]
