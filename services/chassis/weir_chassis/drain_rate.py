"""When a refused caller should try again: a place in the queue frees as often as requests end."""

from __future__ import annotations

from datetime import timedelta

from weir_chassis.clock import Clock
from weir_chassis.rate import Rate

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
        self._rate = Rate(clock)
        self._shortest_seconds, self._longest_seconds = shortest_seconds, longest_seconds
        self._refused = 0

    def ended(self, count: int) -> None:
        """So many requests are over: as many places are free."""
        self._rate.add(count)
        self._refused = max(0, self._refused - count)

    def per_second(self) -> float:
        """Requests ended per second, lately; 0 when none did."""
        return self._rate.per_second()

    def refuse(self) -> timedelta:
        """Notes one more refused caller. Returns how long it should wait."""
        self._refused += 1
        rate = self.per_second()
        seconds = self._refused / rate if rate else _UNKNOWN_SECONDS
        return timedelta(seconds=min(self._longest_seconds, max(self._shortest_seconds, seconds)))
