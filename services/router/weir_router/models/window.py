"""What came of a target's newest requests, and what is certain of the rates behind it. Pure.

Rates are judged by score intervals: Wilson's for one (1927), Newcombe's for the difference of two (method 10 in his
"Interval estimation for the difference between independent proportions", 1998). They are honest for few requests:
nothing seen, nothing certain.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from typing import Final

from weir_router.models.outcome import End, Outcome

# Enough to tell 1 % from 2 %; more would only make a change show later.
_MAX_OUTCOMES: Final = 2000


class Window:
    """The newest outcomes, none older than `seconds`. Times are those of the caller's clock and do not go back."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._outcomes: deque[tuple[float, Outcome]] = deque()
        self._ends: Counter[End] = Counter()
        self._ttfts: list[float] = []  # sorted

    def add(self, outcome: Outcome, now: float) -> None:
        self._outcomes.append((now, outcome))
        self._ends[outcome.end] += 1
        if outcome.ttft_seconds is not None:
            insort(self._ttfts, outcome.ttft_seconds)
        if len(self._outcomes) > _MAX_OUTCOMES:
            self._drop_oldest()
        self.forget(now)

    def forget(self, now: float) -> None:
        while self._outcomes and self._outcomes[0][0] <= now - self._seconds:
            self._drop_oldest()

    def clear(self) -> None:
        self._outcomes.clear()
        self._ends.clear()
        self._ttfts.clear()

    def __len__(self) -> int:
        """Those that say something of the target: not those that the client left."""
        return self._ends[End.ANSWERED] + self._ends[End.FAILED] + self._ends[End.REFUSED]

    def count(self, end: End) -> int:
        return self._ends[end]

    @property
    def num_ttfts(self) -> int:
        return len(self._ttfts)

    def slower_than(self, seconds: float) -> int:
        return len(self._ttfts) - bisect_right(self._ttfts, seconds)

    def ttft_quantile(self, quantile: float, *, deviations: float = 0.0) -> float | None:
        """Seconds; with `deviations`, no less than the true quantile with that certainty. None: nothing was seen."""
        count = len(self._ttfts)
        if not count:
            return None
        margin = deviations * math.sqrt(quantile * (1 - quantile) / count)
        return self._ttfts[min(count - 1, math.floor(min(1.0, quantile + margin) * count))]

    def _drop_oldest(self) -> None:
        _, outcome = self._outcomes.popleft()
        self._ends[outcome.end] -= 1
        if outcome.ttft_seconds is not None:
            del self._ttfts[bisect_left(self._ttfts, outcome.ttft_seconds)]


def wilson(successes: int, count: int, deviations: float) -> tuple[float, float]:
    """The interval in which the rate behind so many of `count` lies; [0, 1] when there are none."""
    if not count:
        return 0.0, 1.0
    rate, z2 = successes / count, deviations**2
    center = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = deviations * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, center - half), min(1.0, center + half)


def least_increase(worse: tuple[int, int], base: tuple[int, int], deviations: float) -> float:
    """By how much the first rate exceeds the second at least. Each: (how many, of how many)."""
    if not worse[1] or not base[1]:
        return -1.0
    first, second = worse[0] / worse[1], base[0] / base[1]
    low, high = wilson(*worse, deviations)[0], wilson(*base, deviations)[1]
    return first - second - math.hypot(first - low, high - second)
