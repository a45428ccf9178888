"""Whether one worker is given requests: what became of those that it had. Pure; the clock is passed in.

    CLOSED ── some failures in a row, or many of many ──► OPEN ── pause over, and it answers a probe ──► HALF_OPEN
       ▲                                                   ▲                                               │
       │                                                   └──── it fails: the pause doubles ◄── one request at a time
       └──────────────────────────────────────────────────────────────────────── it succeeds ◄─────────────┘

What counts as a failure stands in `table.py`. Failures of requests that were on the worker together are one failure of
a row: a connection that breaks under fifty streams is one event. A worker that says it is well and fails what it is
given is not, so a probe alone closes nothing; one that does not even answer that is not tried with a client's request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random

from weir.inference.v1.error_pb2 import ErrorReason
from weir_chassis.breaker import Breaker
from weir_chassis.clock import Clock
from weir_chassis.errors import WeirError
from weir_router.faults.table import Where, verdict
from weir_router.faults.tally import Tally


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    # A request may try it, or is trying.
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a breaker opens, and for how long: a jittered pause that doubles with each trial that fails."""

    failures_in_a_row: int = 5
    # Or this share of the uses in a window, when it has seen enough of them for a share to mean something.
    failed_share: float = 0.5
    min_uses: int = 20
    window_seconds: float = 10.0
    first_seconds: float = 1.0
    longest_seconds: float = 30.0


class WorkerBreaker:
    """One worker's, for one model. Used from one event loop."""

    def __init__(
        self, limits: BreakerLimits, clock: Clock, random: Random, on_move: Callable[[State, State], None]
    ) -> None:
        """`on_move` is told of each change of `state` or `refuses`: the state before, and now."""
        self._limits, self._clock, self._on_move = limits, clock, on_move
        self._breaker = Breaker(
            clock,
            random,
            max_failures=limits.failures_in_a_row,
            first_seconds=limits.first_seconds,
            longest_seconds=limits.longest_seconds,
        )
        self._uses = Tally(limits.window_seconds)  # and of these, the failed
        self._failed_at = float("-inf")  # the newest failure that counted
        self._has_answered = False  # a probe, since the pause was over
        self._trial: Use | None = None
        # Monotonic seconds; since when it has not been closed.
        self.opened_at: float | None = None
        self._known = (State.CLOSED, False)  # what `on_move` was told last

    @property
    def state(self) -> State:
        if not self._breaker.open:
            return State.CLOSED
        return State.OPEN if self._trial is None and self.refuses else State.HALF_OPEN

    @property
    def refuses(self) -> bool:
        """Whether its worker is better not chosen now."""
        return self._breaker.open and (self._breaker.rests or not self._has_answered)

    def begin(self) -> Use:
        """The worker is given a request. In the half-open state, this one is the trial."""
        use = Use(self, self._clock.monotonic())
        if self._breaker.open and not self.refuses and self._breaker.allows():
            self._trial, self._has_answered = use, False
            self._moved()
        return use

    def answered_probe(self) -> None:
        """The worker is there, and says nothing against itself."""
        self._has_answered = self._breaker.open and not self._breaker.rests
        self._moved()

    def succeeded(self, use: Use) -> None:
        if self._breaker.open:
            assert self.opened_at is not None, "an open breaker has been opened"
            # One that was under way when it opened shows what was, and not what is.
            if use is self._trial or use.began_at >= self.opened_at:
                self._close()
            return
        self._breaker.succeeded()
        self._uses.add(self._clock.monotonic(), whole=1)

    def failed(self, use: Use, error: WeirError) -> None:
        """For what counts against the worker."""
        if not self._breaker.open:
            self._note_failure(use, error)
        elif use is self._trial:
            self._trial, self._has_answered = None, False
            self._breaker.failed()
        self._moved()

    def stalled(self) -> None:
        """The worker owes answers and is silent. One such silence is as long as many failures."""
        if not self._breaker.open:
            self._breaker.trip()
            self._note_opened()
        elif self._trial is not None:
            self._trial = None
            self._breaker.failed()
        self._has_answered = False
        self._moved()

    def told_nothing(self, use: Use) -> None:
        """A use is over that shows neither: its client went away, its own deadline passed, there was no room."""
        if use is self._trial:
            self._trial, self._has_answered = None, True
            self._breaker.undecided()
            self._moved()

    def _note_failure(self, use: Use, error: WeirError) -> None:
        now, together = self._clock.monotonic(), use.began_at < self._failed_at
        if together and error.reason == ErrorReason.ERROR_REASON_WORKER_LOST:
            return  # all that it had are lost with it at once
        self._uses.add(now, whole=1, part=1)
        if not together:
            self._failed_at = now
            self._breaker.failed()
        if not self._breaker.open and self._fails_too_often():
            self._breaker.trip()
        if self._breaker.open:
            self._note_opened()

    def _note_opened(self) -> None:
        self.opened_at, self._has_answered = self._clock.monotonic(), False
        self._uses.clear()

    def _close(self) -> None:
        self._breaker.succeeded()
        self._trial, self.opened_at = None, None
        self._moved()

    def _moved(self) -> None:
        before, now = self._known, (self.state, self.refuses)
        if now != before:
            self._known = now
            self._on_move(before[0], now[0])

    def _fails_too_often(self) -> bool:
        uses, limits = self._uses, self._limits
        return uses.whole >= limits.min_uses and uses.part >= limits.failed_share * uses.whole


class Use:
    """One request on one worker. Its end is told once; what is told later is not heard."""

    __slots__ = ("_breaker", "_over", "began_at")

    def __init__(self, breaker: WorkerBreaker, began_at: float) -> None:
        self._breaker, self.began_at, self._over = breaker, began_at, False

    def succeeded(self) -> None:
        if not self._over:
            self._over = True
            self._breaker.succeeded(self)

    def failed(self, error: WeirError, where: Where) -> None:
        """The table says whether it counts."""
        if self._over:
            return
        self._over = True
        if verdict(error, where).counts:
            self._breaker.failed(self, error)
        else:
            self._breaker.told_nothing(self)

    def ended(self) -> None:
        """Without an outcome; nothing happens after one."""
        if not self._over:
            self._over = True
            self._breaker.told_nothing(self)
