"""One worker's breaker: step by step, and under any interleaving of uses, probes and time."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from weir_chassis.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    Internal,
    InvalidArgument,
    NotFound,
    Overloaded,
    PromptTooLong,
    QuotaExceeded,
    SlowConsumer,
    WeirError,
    WorkerLost,
)
from weir_router.faults.breaker import BreakerLimits, State, Use, WorkerBreaker
from weir_router.faults.table import Where

BEFORE = Where.BEFORE_FIRST_TOKEN
LIMITS = BreakerLimits(failures_in_a_row=3, min_uses=10, first_seconds=1.0, longest_seconds=8.0)

NOT_THE_SERVERS: list[WeirError] = [
    InvalidArgument("n", "is wrong"),
    PromptTooLong("prompt", 9, 8),
    NotFound("adapter"),
    Cancelled("by the client"),
    DeadlineExceeded("the client's"),
    Overloaded("full"),
    QuotaExceeded("tenant", "its own"),
    SlowConsumer("too slow"),
    Draining("going"),
]


class Now:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a breaker does not wait")


class Bench:
    def __init__(self, limits: BreakerLimits = LIMITS, seed: int = 0) -> None:
        self.clock = Now()
        self.moves: list[tuple[State, State]] = []
        self.breaker = WorkerBreaker(
            limits, self.clock, Random(seed), lambda before, now: self.moves.append((before, now))
        )

    def fail(self, error: WeirError | None = None, where: Where = BEFORE) -> None:
        self.clock.now += 0.01
        self.breaker.begin().failed(error or Internal("a step failed"), where)

    def state(self) -> State:
        """As it is now: a type checker believes that a property stays what it was."""
        return self.breaker.state

    def open(self) -> None:
        for _ in range(LIMITS.failures_in_a_row):
            self.fail()
        assert self.state() is State.OPEN

    def half_open(self) -> None:
        self.open()
        self.clock.now += LIMITS.first_seconds
        self.breaker.answered_probe()
        assert self.state() is State.HALF_OPEN


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    bench = Bench()
    for _ in range(2):
        bench.fail()
        bench.fail()
        bench.breaker.begin().succeeded()
    assert bench.state() is State.CLOSED
    bench.open()
    assert bench.breaker.refuses
    assert bench.moves == [(State.CLOSED, State.OPEN)]


@pytest.mark.parametrize("error", NOT_THE_SERVERS, ids=lambda error: type(error).__name__)
def test_what_is_not_the_servers_fault_opens_nothing(error: WeirError) -> None:
    bench = Bench()
    for where in Where:
        if where is Where.STALL:
            continue
        for _ in range(100):
            bench.fail(error, where)
    assert bench.state() is State.CLOSED
    assert not bench.moves


def test_a_share_of_failures_opens_it_though_others_succeed_between_them() -> None:
    bench = Bench()
    for _ in range(4):
        bench.fail()
        bench.breaker.begin().succeeded()
    assert bench.state() is State.CLOSED, "eight uses are too few to tell"
    bench.breaker.begin().succeeded()
    bench.fail()
    assert bench.state() is State.OPEN


def test_failures_of_long_ago_do_not_add_up() -> None:
    bench = Bench()
    for _ in range(200):
        bench.fail()
        bench.breaker.begin().succeeded()
        bench.breaker.begin().succeeded()
        bench.clock.now += 1.0
    assert bench.state() is State.CLOSED


def test_a_connection_that_breaks_under_many_streams_is_one_failure() -> None:
    bench = Bench()
    uses = [bench.breaker.begin() for _ in range(50)]
    bench.clock.now = 1.0
    for use in uses:
        use.failed(WorkerLost("its connection failed"), Where.AFTER_FIRST_TOKEN)
    assert bench.state() is State.CLOSED
    bench.fail(WorkerLost("again"))
    bench.fail(WorkerLost("and again"))
    assert bench.state() is State.OPEN, "one that dies of everything that it is given"


def test_many_that_fail_of_themselves_open_it_although_they_were_there_together() -> None:
    bench = Bench()
    uses = [bench.breaker.begin() for _ in range(50)]
    bench.clock.now = 1.0
    for use in uses:
        use.failed(Internal("each of them"), BEFORE)
    assert bench.state() is State.OPEN


def test_it_is_not_tried_before_its_pause_is_over_and_it_answers_a_probe() -> None:
    bench = Bench()
    bench.open()
    bench.breaker.answered_probe()
    assert bench.state() is State.OPEN, "it rests"
    bench.clock.now += LIMITS.first_seconds
    assert bench.breaker.refuses, "it may hang"
    bench.breaker.answered_probe()
    assert bench.state() is State.HALF_OPEN


def test_one_request_at_a_time_tries_it_and_a_success_closes_it() -> None:
    bench = Bench()
    bench.half_open()
    assert not bench.breaker.refuses
    trial = bench.breaker.begin()
    assert bench.breaker.refuses
    assert bench.state() is State.HALF_OPEN
    trial.succeeded()
    assert bench.state() is State.CLOSED
    assert not bench.breaker.refuses


def test_pauses_double_with_each_trial_that_fails_up_to_a_bound() -> None:
    bench = Bench(seed=3)
    bench.open()
    pauses = []
    for _ in range(7):
        start = bench.clock.now
        while bench.breaker.refuses:
            bench.clock.now += 0.01
            bench.breaker.answered_probe()
        pauses.append(bench.clock.now - start)
        bench.fail()
        assert bench.state() is State.OPEN
    for pause, longest in zip(pauses, [1, 2, 4, 8, 8, 8, 8], strict=True):
        assert 0.49 * longest <= pause <= longest + 0.02


def test_a_trial_that_shows_nothing_lets_the_next_try_at_once() -> None:
    bench = Bench()
    bench.half_open()
    trial = bench.breaker.begin()
    trial.ended()
    assert not bench.breaker.refuses
    bench.breaker.begin().failed(Overloaded("no room"), BEFORE)
    assert not bench.breaker.refuses
    bench.breaker.begin().succeeded()
    assert bench.state() is State.CLOSED


def test_a_trial_whose_end_is_never_told_holds_nobody_up() -> None:
    bench = Bench()
    bench.half_open()
    forgotten = bench.breaker.begin()
    bench.clock.now += LIMITS.first_seconds
    bench.breaker.answered_probe()
    assert not bench.breaker.refuses
    bench.breaker.begin().succeeded()
    assert bench.state() is State.CLOSED
    forgotten.failed(Internal("late"), BEFORE)
    assert bench.state() is State.CLOSED, "one failure"


def test_a_worker_that_stalls_is_left_out_at_once_and_a_trial_that_stalls_has_failed() -> None:
    bench = Bench()
    bench.breaker.stalled()
    assert bench.state() is State.OPEN
    bench.breaker.stalled()
    bench.clock.now += LIMITS.first_seconds
    bench.breaker.answered_probe()
    bench.breaker.begin()
    bench.breaker.stalled()
    assert bench.state() is State.OPEN
    bench.clock.now += LIMITS.first_seconds / 2
    bench.breaker.answered_probe()
    assert bench.breaker.refuses, "its pause is twice as long"
    bench.clock.now += 2 * LIMITS.first_seconds
    bench.breaker.answered_probe()
    bench.breaker.begin().succeeded()
    assert bench.state() is State.CLOSED


def test_who_was_there_before_it_opened_says_nothing_of_now() -> None:
    bench = Bench()
    old = [bench.breaker.begin() for _ in range(2)]
    bench.open()
    old[0].succeeded()
    assert bench.state() is State.OPEN
    old[1].failed(Internal("too"), BEFORE)
    bench.clock.now += 0.01
    bench.breaker.begin().succeeded()
    assert bench.state() is State.CLOSED, "it was used in spite of everything, and works"


def test_what_is_told_twice_is_heard_once() -> None:
    bench = Bench()
    for _ in range(2):
        bench.fail()
    bench.clock.now += 1
    use = bench.breaker.begin()
    use.ended()
    use.failed(Internal("too late"), BEFORE)
    use.succeeded()
    assert bench.state() is State.CLOSED
    bench.fail()
    assert bench.state() is State.OPEN, "the row of two was not broken"


@given(
    st.lists(st.tuples(st.sampled_from(NOT_THE_SERVERS), st.sampled_from([w for w in Where if w is not Where.STALL])))
)
def test_no_flood_of_clients_faults_opens_it(flood: list[tuple[WeirError, Where]]) -> None:
    bench = Bench()
    uses = [bench.breaker.begin() for _ in flood]
    for use, (error, where) in zip(uses, flood, strict=True):
        use.failed(error, where)
    assert bench.state() is State.CLOSED


class Interleavings(RuleBasedStateMachine):
    """Uses begin and end in any order while time passes; the worker answers probes, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.breaker = self.bench.breaker
        self.live: list[Use] = []
        self.server_faults = 0

    def state(self) -> State:
        return self.bench.state()

    @rule()
    def begin(self) -> None:
        tries = self.state() is State.HALF_OPEN and not self.breaker.refuses
        self.live.append(self.breaker.begin())
        assert self.breaker.refuses == (self.state() is not State.CLOSED), "a trial has been taken, if there was one"
        assert not tries or self.state() is State.HALF_OPEN

    @precondition(lambda self: self.live)
    @rule(data=st.data(), outcome=st.sampled_from(["succeeded", "server", "lost", "client", "ended"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        use = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        was = self.state()
        match outcome:
            case "succeeded":
                use.succeeded()
                assert was is not State.CLOSED or self.state() is State.CLOSED
            case "server" | "lost":
                self.server_faults += 1
                use.failed(Internal("x") if outcome == "server" else WorkerLost("x"), BEFORE)
                assert was is State.CLOSED or self.state() is not State.CLOSED, "no failure closes it"
            case "client":
                use.failed(InvalidArgument("n", "x"), BEFORE)
            case "ended":
                use.ended()
        if outcome in {"client", "ended"}:
            assert (was is State.CLOSED) == (self.state() is State.CLOSED), "it says nothing"

    @rule()
    def stall(self) -> None:
        self.server_faults += LIMITS.min_uses
        self.breaker.stalled()
        assert self.state() is State.OPEN

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.bench.clock.now += seconds

    @rule()
    def probe(self) -> None:
        was = self.state()
        self.breaker.answered_probe()
        assert (was is State.CLOSED) == (self.state() is State.CLOSED), "a probe alone closes nothing"

    @rule()
    def it_always_comes_back(self) -> None:
        """From any state: after the longest pause and a probe, one success closes it."""
        if self.state() is State.CLOSED:
            return
        self.bench.clock.now += LIMITS.longest_seconds
        self.breaker.answered_probe()
        assert not self.breaker.refuses
        self.breaker.begin().succeeded()
        assert self.state() is State.CLOSED

    @invariant()
    def only_the_servers_faults_open_it(self) -> None:
        if self.state() is not State.CLOSED:
            assert self.server_faults >= LIMITS.failures_in_a_row or self.server_faults >= LIMITS.min_uses / 2

    @invariant()
    def a_closed_one_refuses_nobody(self) -> None:
        assert (self.breaker.opened_at is None) == (self.state() is State.CLOSED)
        if self.state() is State.CLOSED:
            assert not self.breaker.refuses

    @invariant()
    def every_move_was_told(self) -> None:
        moves = self.bench.moves
        assert (moves[-1][1] if moves else State.CLOSED) is self.state()
        assert all(before[1] is after[0] for before, after in pairwise(moves))


Interleavings.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestInterleavings = Interleavings.TestCase
