"""How much an alias' shadow may compute: so many tokens a minute, so many requests at once. Pure.

A bucket that fills while time passes, and holds no more than a minute's worth: what was not used lapses.
"""

from __future__ import annotations


class ShadowBudget:
    """Times are monotonic seconds and do not go back. Every `take` that is granted ends with one `give_back`."""

    def __init__(self, tokens_per_minute: int, max_concurrent: int, now: float):
        self._tokens_per_minute, self._max_concurrent = tokens_per_minute, max_concurrent
        self._left, self._filled_at, self._running = float(tokens_per_minute), now, 0

    def take(self, tokens: int, now: float) -> bool:
        """Whether a request of so many tokens at most may run; if so, they are spent."""
        self._fill(now)
        if tokens > self._left or self._running >= self._max_concurrent:
            return False
        self._left -= tokens
        self._running += 1
        return True

    def give_back(self, unused_tokens: int, now: float) -> None:
        """One request is over, and has not needed these."""
        assert self._running > 0
        self._fill(now)
        self._running -= 1
        self._left = min(float(self._tokens_per_minute), self._left + unused_tokens)

    def _fill(self, now: float) -> None:
        earned = (now - self._filled_at) * self._tokens_per_minute / 60
        self._left, self._filled_at = min(float(self._tokens_per_minute), self._left + earned), now
