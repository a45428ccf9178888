"""Whether somebody who failed is asked again: a kvstore, a Redis, a peer, a worker."""

from __future__ import annotations

from random import Random

from weir_chassis.clock import Clock

_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 30.0


class Breaker:
    """Closed until a few failures in a row; then open for a while, which doubles with each failed trial.

    When the while is over, one caller is let through to try, and the others wait for another while: a trial whose end
    is never told holds nobody up for ever.
    """

    def __init__(
        self,
        clock: Clock,
        random: Random,
        *,
        max_failures: int = 3,
        first_seconds: float = _FIRST_SECONDS,
        longest_seconds: float = _LONGEST_SECONDS,
    ) -> None:
        """Opens at the `max_failures`-th failure in a row; one may be chance. For `first_seconds`, and longer later."""
        assert 0 < first_seconds <= longest_seconds, (first_seconds, longest_seconds)
        self._clock, self._random = clock, random
        self._max_failures = max_failures
        self._first_seconds, self._longest_seconds = first_seconds, longest_seconds
        self._failures = 0
        self._trying = False
        self._backoff_seconds = first_seconds
        self._closed_again_at: float | None = None  # None: closed

    @property
    def open(self) -> bool:
        return self._closed_again_at is not None

    @property
    def rests(self) -> bool:
        """Whether `allows` would say no. Safe to ask from any thread."""
        until = self._closed_again_at
        return until is not None and self._clock.monotonic() < until

    def allows(self) -> bool:
        """Whether to make a call now. The caller tells its outcome."""
        if self._closed_again_at is None:
            return True
        if self.rests:
            return False
        self._closed_again_at, self._trying = self._clock.monotonic() + self._jittered(), True
        return True

    def succeeded(self) -> None:
        self._failures, self._backoff_seconds = 0, self._first_seconds
        self._closed_again_at, self._trying = None, False

    def failed(self) -> None:
        if self.open and not self._trying:
            return  # one of many calls that were under way together: the store is no deader for each of them
        self._failures += 1
        if self._failures < self._max_failures:
            return
        if self._trying:
            self._backoff_seconds = min(self._longest_seconds, 2 * self._backoff_seconds)
        self._closed_again_at, self._trying = self._clock.monotonic() + self._jittered(), False

    def trip(self) -> None:
        """Opens now, for a reason that is not a row of failures."""
        assert not self.open, "it is open"
        self._failures = self._max_failures - 1
        self.failed()

    def undecided(self) -> None:
        """The trial is over and has shown nothing: the next caller may try."""
        if self._trying:
            self._closed_again_at, self._trying = self._clock.monotonic(), False

    def _jittered(self) -> float:
        # So that those who lost the same store do not come back to it together.
        return self._backoff_seconds * (0.5 + 0.5 * self._random.random())
