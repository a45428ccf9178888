"""How much more work than clients ask for the router may make: extra tries, as a share of the requests of late. Pure.

A request that fails is tried again, but when everything fails, trying everything again would double the load at the
worst moment. So tries are paid for by requests, and what is not used lapses: the retry budget of Finagle,
https://finagle.github.io/blog/2016/02/08/retry-budgets, with the floor as the larger of two limits and not as a sum.
"""

from __future__ import annotations

from weir_router.faults.tally import Tally


class RetryBudget:
    """In any `window_seconds`, at most `share` of its requests in extra tries, or `floor` where that is more.

    `share`: [0, 1]. The floor is what a quiet router lives on. Times are monotonic seconds. Used from one event loop.
    """

    def __init__(self, share: float, floor: int, window_seconds: float) -> None:
        assert 0 <= share <= 1, share
        assert floor >= 0, floor
        self._share, self._floor = share, floor
        self._tally = Tally(window_seconds)  # of requests, and of the extra tries made beside them

    def note_request(self, now: float) -> None:
        """A client has asked for something."""
        self._tally.add(now, whole=1)

    def take(self, now: float) -> bool:
        """Whether there may be one more extra try; if so, it is counted."""
        if self.left(now) < 1:
            return False
        self._tally.add(now, part=1)
        return True

    def left(self, now: float) -> int:
        """Extra tries that there may be now; below 0 when the requests that paid for some have lapsed."""
        self._tally.forget(now)
        return max(self._floor, int(self._share * self._tally.whole)) - self._tally.part
