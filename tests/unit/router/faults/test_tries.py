"""How often one request moves on, and what of it counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.errors import Draining, InvalidArgument, Overloaded, WeirError, WorkerLost
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock
from weir_router.faults.budget import RetryBudget
from weir_router.faults.retries import MAX_ATTEMPTS, Retries
from weir_router.faults.tries import Tries
from weir_router.metrics import RouterMetrics

LOST, FULL, DRAINING = WorkerLost("gone"), Overloaded("full"), Draining("as it was asked to")


def tries(floor: int = 1000, *, max_continuations: int = 3, wait_seconds: float = 10.0) -> Tries:
    retries = Retries(RetryBudget(0.1, floor, 60.0), VirtualClock(), RouterMetrics(Metrics("test")))
    return Tries(retries, max_continuations=max_continuations, wait_seconds=wait_seconds)


def begun_anew(of: Tries, error: WeirError) -> int:
    """How often it is while each attempt ends with this error."""
    attempts = 1
    while of.may_begin_anew(error, attempts):
        attempts += 1
    return attempts - 1


def test_before_the_first_token_workers_that_go_as_they_were_asked_count_apart_up_to_a_bound() -> None:
    assert begun_anew(tries(), LOST) == MAX_ATTEMPTS - 1
    assert begun_anew(tries(), DRAINING) == 8 + MAX_ATTEMPTS - 1


def test_a_drain_leaves_what_a_lost_worker_may_cost() -> None:
    of = tries()
    assert of.may_begin_anew(DRAINING, 1)
    assert of.may_begin_anew(LOST, 2)
    assert not of.may_begin_anew(LOST, 3)


def test_after_the_first_token_it_goes_on_so_often_at_most() -> None:
    of = tries(max_continuations=3)
    assert [of.may_continue(LOST, drawn, 0.0) for drawn in (5, 5, 9, 12)] == [True, True, True, False]
    assert not tries().may_continue(InvalidArgument("n", "is wrong everywhere"), 5, 0.0)


def test_who_has_no_room_costs_no_continuation_for_a_while_after_each_failure_with_progress() -> None:
    of = tries(max_continuations=2)
    assert of.may_continue(LOST, 5, 100.0)
    assert all(of.may_continue(FULL, 5, 100.0 + seconds) for seconds in range(10))
    assert of.may_continue(FULL, 5, 110.0), "the second continuation"
    assert not of.may_continue(FULL, 5, 111.0)


@given(st.lists(st.sampled_from([LOST, FULL, DRAINING]), max_size=40), st.integers(1, 5))
def test_without_patience_all_count(errors: list[WeirError], max_continuations: int) -> None:
    of = tries(max_continuations=max_continuations, wait_seconds=0.0)
    went_on = [of.may_continue(error, 5 + i, float(i)) for i, error in enumerate(errors)]
    assert went_on == [i < max_continuations for i in range(len(errors))]


def test_the_first_continuation_after_a_loss_is_free_and_the_next_are_not() -> None:
    of = tries(floor=0)
    assert of.may_continue(LOST, 5, 0.0)
    assert not of.may_continue(LOST, 6, 0.0)
    assert not tries(floor=0).may_continue(FULL, 5, 0.0)


@pytest.mark.parametrize("drawn", [False, True])
def test_a_request_has_two_seconds_and_a_refusal_is_none(drawn: bool) -> None:
    of = tries()
    for _ in range(2):
        assert of.may_have_second
        assert of.may_hedge("SLOW", drawn=drawn)
    assert not of.may_have_second
    poor = tries(floor=0)
    assert not poor.may_hedge("SLOW", drawn=drawn)
    assert poor.may_have_second
