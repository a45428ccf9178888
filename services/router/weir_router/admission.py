"""Who may go, who waits and who is turned away. `AdmissionQueue` decides without a clock; `Admission` waits and leases.

    enter ──► running (≤ max_running) ──► leave
      │           ▲
      ├──► waiting (≤ max_waiting): highest priority first, then first come first served
      └──► refused, with the time until a place should be free

A request that waits keeps its deadline and may leave at any time; the caller's timeout and cancellation end the wait.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from weir_chassis.clock import Clock
from weir_chassis.drain_rate import DrainRate
from weir_chassis.errors import Overloaded
from weir_chassis.leases import LeaseLedger
from weir_router.metrics import RouterMetrics

# A client should neither hammer nor give up.
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.1, 60.0


@dataclass(eq=False, slots=True)
class Ticket:
    """One request's place in the queue. `entered_at` is in seconds of the caller's clock."""

    priority: int
    entered_at: float
    running: bool = False
    # Woken when a place is free; made only for a ticket that has to wait.
    admitted: asyncio.Event | None = None


class AdmissionQueue:
    """Counts places. Every method is a decision without waiting."""

    def __init__(self, max_running: int, max_waiting: int):
        assert max_running > 0, max_running
        assert max_waiting >= 0, max_waiting
        self._max_running, self._max_waiting = max_running, max_waiting
        self._running = 0
        # By priority, each in order of arrival; a priority without tickets has no entry, so there are at most 201.
        self._waiting: dict[int, OrderedDict[Ticket, None]] = {}
        self._num_waiting = 0

    @property
    def num_running(self) -> int:
        return self._running

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    def enter(self, priority: int, now: float) -> Ticket | None:
        """A ticket that runs or waits; None when all places and the queue are full. `now` is in seconds."""
        ticket = Ticket(priority, entered_at=now)
        if self._running < self._max_running:
            # Nobody is overtaken: whoever waits is admitted as soon as a place is free.
            assert self._num_waiting == 0, "a place was free while somebody waited"
            return self._admit(ticket)
        if self._num_waiting >= self._max_waiting:
            return None
        self._waiting.setdefault(priority, OrderedDict())[ticket] = None
        self._num_waiting += 1
        return ticket

    def leave(self, ticket: Ticket) -> Ticket | None:
        """Takes the ticket out, running or waiting; returns the one that now has its place."""
        if not ticket.running:
            self._remove_waiting(ticket)
            return None
        self._running -= 1
        return self._admit_next()

    def check_integrity(self) -> None:
        assert 0 <= self._running <= self._max_running, self._running
        assert 0 <= self._num_waiting <= self._max_waiting, self._num_waiting
        assert self._num_waiting == sum(map(len, self._waiting.values()))
        assert self._num_waiting == 0 or self._running == self._max_running, "somebody waits beside a free place"
        assert all(self._waiting.values()), "a priority without tickets is remembered"

    def _admit(self, ticket: Ticket) -> Ticket:
        ticket.running = True
        self._running += 1
        return ticket

    def _admit_next(self) -> Ticket | None:
        if not self._waiting:
            return None
        ticket = next(iter(self._waiting[max(self._waiting)]))
        self._remove_waiting(ticket)
        return self._admit(ticket)

    def _remove_waiting(self, ticket: Ticket) -> None:
        queue = self._waiting[ticket.priority]
        del queue[ticket]
        self._num_waiting -= 1
        if not queue:
            del self._waiting[ticket.priority]


class Admission:
    """The queue, with waiting and leases. `place` is the one place where a place is given back."""

    def __init__(self, queue: AdmissionQueue, clock: Clock, leases: LeaseLedger, metrics: RouterMetrics):
        self._queue, self._clock, self._leases, self._metrics = queue, clock, leases, metrics
        metrics.waiting.set_function(lambda: queue.num_waiting)
        metrics.running.set_function(lambda: queue.num_running)
        self._drain_rate = DrainRate(clock, shortest_seconds=_MIN_RETRY_SECONDS, longest_seconds=_MAX_RETRY_SECONDS)

    @asynccontextmanager
    async def place(self, priority: int, owner: str) -> AsyncIterator[float]:
        """Holds a place among the running; yields the seconds that were waited. Raises Overloaded when all is full."""
        ticket = self._enter(priority)
        with self._leases.acquire("place", owner, on_release=lambda: self._leave(ticket)):
            if not ticket.running:
                ticket.admitted = asyncio.Event()
                await ticket.admitted.wait()
            waited = self._clock.monotonic() - ticket.entered_at
            self._metrics.admission_seconds.observe(waited)
            yield waited

    def _enter(self, priority: int) -> Ticket:
        ticket = self._queue.enter(priority, self._clock.monotonic())
        if ticket is None:
            message = f"{self._queue.num_running} requests run and {self._queue.num_waiting} wait"
            raise Overloaded(message, retry_after=self._drain_rate.refuse())
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        successor = self._queue.leave(ticket)
        # Whether it ran or waited, one more can come in.
        self._drain_rate.ended(1)
        if successor is not None:
            assert successor.admitted is not None, "a ticket waited without anything to wake it"
            successor.admitted.set()
