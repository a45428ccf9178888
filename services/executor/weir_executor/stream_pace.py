"""How often a stream speaks. Pure.

Every delta costs each process between here and its client a wake-up, and on a machine that computes as well they are
taken from the steps. So what a few requests have to say leaves at once; the more live on a stream, the more of their
steps come together in a message. Beginnings and ends of requests never wait.
"""

from __future__ import annotations

# Ten times a second reads as a flow.
LONGEST_SECONDS = 0.1


class StreamPace:
    def __init__(self, deltas_per_second: float) -> None:
        """`deltas_per_second`: about as many leave, of all of a stream's requests together."""
        assert deltas_per_second > 0, deltas_per_second
        self._deltas_per_second = deltas_per_second
        self._spoke_at = float("-inf")

    def spoke(self, now: float) -> None:
        self._spoke_at = now

    def due_at(self, live_requests: int) -> float:
        """When tokens of this many requests may leave next, by the clock of `spoke`."""
        return self._spoke_at + min(LONGEST_SECONDS, live_requests / self._deltas_per_second)
