"""When a refused caller should try again: a place in the queue frees as often as requests end."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

from weir_chassis.clock import Clock

_WINDOW_SECONDS = 10.0  # long enough to see a few requests end, short enough to follow a change of load
# At most one sample per tenth of a second is kept, so the window holds at most a hundred.
_SAMPLE_SECONDS = 0.1
# Sooner, and a refused caller would find nothing changed; later, and it would not wait but give up.
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.05, 30.0
_UNKNOWN_SECONDS = 1.0  # nothing has ended yet: as good a guess as any


class DrainRate:
    """Counts how many requests end, and spreads refused callers over the places that will free.

    The n-th caller refused since the last place freed is told to come back after n places have. Told all the same time,
    they would come back together and be refused together. Used from one event loop; not locked.
    """

    def __init__(
        self, clock: Clock, *, shortest_seconds: float = _SHORTEST_SECONDS, longest_seconds: float = _LONGEST_SECONDS
    ) -> None:
        """The two bound what refused callers are told."""
        assert 0 < shortest_seconds <= longest_seconds, (shortest_seconds, longest_seconds)
        self._clock = clock
        self._shortest_seconds, self._longest_seconds = shortest_seconds, longest_seconds
        self._started = clock.monotonic()
        self._samples: deque[tuple[float, int]] = deque()  # (when, how many ended since the sample before)
        self._in_window = 0
        self._refused = 0

    def ended(self, count: int) -> None:
        """So many requests are over: as many places are free."""
        now = self._clock.monotonic()
        if self._samples and now - self._samples[-1][0] < _SAMPLE_SECONDS:
            when, before = self._samples[-1]
            self._samples[-1] = (when, before + count)
        else:
            self._samples.append((now, count))
        self._in_window += count
        self._refused = max(0, self._refused - count)
        self._forget(now)

    def per_second(self) -> float:
        """Requests ended per second, lately; 0 when none did."""
        now = self._clock.monotonic()
        self._forget(now)
        elapsed = min(_WINDOW_SECONDS, now - self._started)
        return self._in_window / elapsed if elapsed > 0 else 0.0

    def refuse(self) -> timedelta:
        """Notes one more refused caller. Returns how long it should wait."""
        self._refused += 1
        rate = self.per_second()
        seconds = self._refused / rate if rate else _UNKNOWN_SECONDS
        return timedelta(seconds=min(self._longest_seconds, max(self._shortest_seconds, seconds)))

    def _forget(self, now: float) -> None:
        while self._samples and self._samples[0][0] <= now - _WINDOW_SECONDS:
            self._in_window -= self._samples.popleft()[1]
