"""Time that passes only from one event to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualTime:
    """Seconds. Events of one time happen in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        assert seconds >= 0, seconds
        self._asked += 1
        heapq.heappush(self._events, (self.now + seconds, self._asked, event))

    def run(self, until: float) -> None:
        """Everything up to this time."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until
