"""How much more work than clients ask for the router may make: extra tries, as a share of the requests of late. Pure.

A request that fails is tried again, but when everything fails, trying everything again would double the load at the
worst moment. So tries are paid for by requests, and what is not used lapses: the retry budget of Finagle,
https://finagle.github.io/blog/2016/02/08/retry-budgets, with the floor as the larger of two limits and not as a sum.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# What the window is made of: what comes within one slice lapses together.
_SLICES = 10


@dataclass(slots=True)
class _Slice:
    begins_at: float
    requests: int = 0
    extras: int = 0


class RetryBudget:
    """In any `window_seconds`, at most `share` of its requests in extra tries, or `floor` where that is more.

    `share`: [0, 1]. The floor is what a quiet router lives on. Times are monotonic seconds. Used from one event loop.
    """

    def __init__(self, share: float, floor: int, window_seconds: float) -> None:
        assert 0 <= share <= 1, share
        assert floor >= 0, floor
        self._share, self._floor = share, floor
        self._window_seconds, self._slice_seconds = window_seconds, window_seconds / _SLICES
        self._slices: deque[_Slice] = deque()  # at most _SLICES + 2
        self._requests = self._extras = 0

    def note_request(self, now: float) -> None:
        """A client has asked for something."""
        self._current(now).requests += 1
        self._requests += 1

    def take(self, now: float) -> bool:
        """Whether there may be one more extra try; if so, it is counted."""
        if self.left(now) < 1:
            return False
        self._current(now).extras += 1
        self._extras += 1
        return True

    def left(self, now: float) -> int:
        """Extra tries that there may be now."""
        self._forget(now)
        return max(self._floor, int(self._share * self._requests)) - self._extras

    def _current(self, now: float) -> _Slice:
        self._forget(now)
        if not self._slices or now >= self._slices[-1].begins_at + self._slice_seconds:
            self._slices.append(_Slice(now))
        return self._slices[-1]

    def _forget(self, now: float) -> None:
        """A slice lapses a whole window after it began to end, so that no try is forgotten early."""
        while self._slices and now >= self._slices[0].begins_at + self._slice_seconds + self._window_seconds:
            lapsed = self._slices.popleft()
            self._requests -= lapsed.requests
            self._extras -= lapsed.extras
