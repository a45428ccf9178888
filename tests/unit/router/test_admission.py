"""The queue by its rules, then with tasks that wait."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from weir_chassis.errors import Overloaded
from weir_chassis.leases import LeaseLedger
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock, assert_no_leases, settle
from weir_router.admission import Admission, AdmissionQueue, Ticket
from weir_router.metrics import RouterMetrics


def entered(ticket: Ticket | None) -> Ticket:
    assert ticket is not None
    return ticket


def test_places_are_taken_until_there_are_none_then_the_queue_fills_then_it_refuses() -> None:
    queue = AdmissionQueue(max_running=2, max_waiting=1)
    running = [entered(queue.enter(0, now=0.0)) for _ in range(2)]
    waiting = entered(queue.enter(0, now=0.0))
    assert all(ticket.running for ticket in running)
    assert not waiting.running
    assert queue.enter(100, now=0.0) is None
    assert queue.leave(running[0]) is waiting
    assert waiting.running


def test_a_higher_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    queue = AdmissionQueue(max_running=1, max_waiting=9)
    current = entered(queue.enter(0, now=0.0))
    tickets = {name: entered(queue.enter(p, now=0.0)) for name, p in [("a", 0), ("b", 5), ("c", -5), ("d", 5)]}
    order = []
    while (successor := queue.leave(current)) is not None:
        order.append(next(name for name, ticket in tickets.items() if ticket is successor))
        current = successor
    assert order == ["b", "d", "a", "c"]


def test_who_leaves_while_waiting_takes_no_place() -> None:
    queue = AdmissionQueue(max_running=1, max_waiting=2)
    running = entered(queue.enter(0, now=0.0))
    impatient, patient = entered(queue.enter(0, now=0.0)), entered(queue.enter(0, now=0.0))
    assert queue.leave(impatient) is None
    assert queue.leave(running) is patient
    assert queue.leave(patient) is None
    assert (queue.num_running, queue.num_waiting) == (0, 0)


class QueueMachine(RuleBasedStateMachine):
    """Any order of entering and leaving keeps the counts, the bounds and the order."""

    tickets: Bundle[Ticket] = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.queue = AdmissionQueue(max_running=3, max_waiting=4)
        self.now = 0.0
        self.live: list[Ticket] = []

    @rule(target=tickets, priority=st.integers(-100, 100))
    def enter(self, priority: int) -> Any:
        self.now += 1.0
        full = self.queue.num_running == 3 and self.queue.num_waiting == 4
        ticket = self.queue.enter(priority, self.now)
        assert (ticket is None) == full
        if ticket is None:
            return multiple()
        self.live.append(ticket)
        return ticket

    @rule(ticket=consumes(tickets))
    def leave(self, ticket: Ticket) -> None:
        waiting = [other for other in self.live if not other.running and other is not ticket]
        was_running = ticket.running
        self.live.remove(ticket)
        successor = self.queue.leave(ticket)
        best = max(waiting, key=lambda t: (t.priority, -t.entered_at), default=None)
        assert successor is (best if was_running else None)

    @invariant()
    def counts(self) -> None:
        self.queue.check_integrity()
        assert self.queue.num_running + self.queue.num_waiting == len(self.live)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=50, stateful_step_count=30)


class Door:
    """An admission and what went through it."""

    def __init__(self, max_running: int, max_waiting: int):
        self.clock = VirtualClock()
        self.leases = LeaseLedger(self.clock)
        self.metrics = Metrics("test")
        queue = AdmissionQueue(max_running, max_waiting)
        self.admission = Admission(queue, self.clock, self.leases, RouterMetrics(self.metrics))
        self.inside: list[str] = []
        self.waited: dict[str, float] = {}

    async def visit(self, name: str, seconds: float, priority: int = 0) -> None:
        async with self.admission.place(priority, name) as self.waited[name]:
            self.inside.append(name)
            try:
                await self.clock.sleep(seconds)
            finally:
                self.inside.remove(name)


async def test_a_waiting_request_gets_the_place_that_is_given_back() -> None:
    door = Door(max_running=1, max_waiting=1)
    tasks = [asyncio.create_task(door.visit("first", 3.0)), asyncio.create_task(door.visit("second", 1.0))]
    await settle()
    assert door.inside == ["first"]
    with pytest.raises(Overloaded) as caught:
        await door.visit("third", 1.0)
    assert caught.value.retry_after == timedelta(seconds=1), "nothing was measured yet"
    await door.clock.advance(3.0)
    assert door.inside == ["second"]
    await door.clock.advance(1.0)
    await asyncio.gather(*tasks)
    assert door.waited == {"first": 0.0, "second": 3.0}
    assert door.metrics.registry.get_sample_value("weir_test_admission_seconds_sum") == 3.0
    assert_no_leases(door.leases)


async def refused(door: Door, times: int) -> list[float]:
    """The seconds after which each caller that finds the door full is to come back."""
    waits = []
    for _ in range(times):
        with pytest.raises(Overloaded) as caught:
            await door.visit("refused", 1.0)
        assert caught.value.retry_after is not None
        waits.append(caught.value.retry_after.total_seconds())
    return waits


async def test_the_time_to_retry_follows_the_rate_at_which_places_are_given_back() -> None:
    door = Door(max_running=1, max_waiting=1)
    for _ in range(40):
        visit = asyncio.create_task(door.visit("quick", 0.5))
        await door.clock.advance(0.5)
        await visit
    tasks = [asyncio.create_task(door.visit(name, 0.5)) for name in ("running", "waiting")]
    await settle()
    assert await refused(door, times=3) == pytest.approx([0.5, 1.0, 1.5], rel=0.1)
    tasks[1].cancel()  # who leaves the queue makes room there
    await asyncio.gather(tasks[1], return_exceptions=True)
    tasks[1] = asyncio.create_task(door.visit("waiting", 0.5))
    await settle()
    assert await refused(door, times=1) == pytest.approx([1.5], rel=0.1)
    await door.clock.advance(0.5)
    await door.clock.advance(0.5)
    await asyncio.gather(*tasks)
    assert_no_leases(door.leases)


@pytest.mark.parametrize(("visits", "refusals", "expected"), [(1000, 1, 0.1), (1, 1000, 60.0)])
async def test_the_time_to_retry_has_bounds(visits: int, refusals: int, expected: float) -> None:
    door = Door(max_running=1, max_waiting=0)
    await door.clock.advance(10.0)
    for _ in range(visits):
        await door.visit("quick", 0.0)
    async with door.admission.place(0, "stays"):
        assert (await refused(door, refusals))[-1] == expected


async def test_a_request_that_is_cancelled_while_it_waits_leaves_the_queue() -> None:
    door = Door(max_running=1, max_waiting=1)
    first = asyncio.create_task(door.visit("first", 1.0))
    waiting = asyncio.create_task(door.visit("waiting", 1.0))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    later = asyncio.create_task(door.visit("later", 1.0))
    await door.clock.advance(1.0)
    assert door.inside == ["later"]
    await door.clock.advance(1.0)
    await asyncio.gather(first, later)
    assert_no_leases(door.leases)


async def test_a_request_that_is_cancelled_just_when_it_is_admitted_passes_its_place_on() -> None:
    door = Door(max_running=1, max_waiting=2)
    tasks = [asyncio.create_task(door.visit(name, 1.0)) for name in ("first", "second", "third")]
    await settle()
    tasks[0].cancel()
    tasks[1].cancel()  # before it could wake
    await settle()
    assert door.inside == ["third"]
    await door.clock.advance(1.0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert_no_leases(door.leases)
