"""How often one request is given to another worker: anew before its first token, on after it, or to a second beside.

A worker that goes as it was asked to, and one without room, has not failed it: they count apart, up to bounds of their
own.
"""

from __future__ import annotations

from typing import Final

from weir_chassis.errors import Draining, Overloaded, WeirError
from weir_router.faults.retries import Extra, Retries
from weir_router.faults.table import Where

# Before the first token, of workers that were asked as they went: more than there are restarted at a time.
_MAX_DRAINING: Final = 8

# Of second executors beside others: a request that kills whoever is given it must not kill the fleet.
_MAX_SECONDS: Final = 2


class Tries:
    """Of one request. A yes is taken out of the budget that all requests share: ask when the try is about to be made.

    `max_continuations`: after the first token. `wait_seconds`: for so long after a failure with new tokens before it,
    an executor without room costs none of these.
    """

    def __init__(self, retries: Retries, *, max_continuations: int, wait_seconds: float):
        self._retries, self._max_continuations, self._wait_seconds = retries, max_continuations, wait_seconds
        # How many workers have failed it after its first token, those that had no room left out; how many tokens were
        # drawn when one last failed it, and how long after that somebody with room is waited for.
        self._failures, self._drawn_before, self._patient_until = 0, 0, 0.0
        # Of its attempts, those that were drains: no worker has had it.
        self._draining = 0
        self._num_seconds = 0

    def may_begin_anew(self, error: WeirError, attempts: int) -> bool:
        """Whether another worker is given it from its beginning after `error` ended attempt number `attempts`."""
        if isinstance(error, Draining) and self._draining < _MAX_DRAINING:
            self._draining += 1
        return self._retries.may_retry(error, Where.BEFORE_FIRST_TOKEN, attempts - self._draining)

    def may_continue(self, error: WeirError, drawn: int, now: float) -> bool:
        """Whether another worker goes on after the `drawn` tokens. `now`: monotonic seconds."""
        if drawn > self._drawn_before:
            self._drawn_before, self._patient_until = drawn, now + self._wait_seconds
        if not isinstance(error, Overloaded) or now >= self._patient_until:
            self._failures += 1
        return self._retries.may_retry(
            error,
            Where.AFTER_FIRST_TOKEN,
            self._failures,
            max_attempts=self._max_continuations + 1,
            extra=Extra.CONTINUATION,
            # A worker that is lost moves as many streams as it had, each of them once, and costs their prompts. The
            # budget is there for what comes of it when the next ones fail, too.
            charged=self._failures > 1 or isinstance(error, Overloaded),
        )

    @property
    def may_have_second(self) -> bool:
        """Whether a second executor may be looked for: this asks for nothing of the budget."""
        return self._num_seconds < _MAX_SECONDS

    def may_hedge(self, cause: str, *, drawn: bool) -> bool:
        """Whether a second executor is given it, too, which is there. `cause`: one of a closed list."""
        assert self.may_have_second, "it had as many as it may"
        if not self._retries.allows(Extra.CONTINUATION if drawn else Extra.HEDGE, cause):
            return False
        self._num_seconds += 1
        return True
