"""The budget lends no more than its share, whatever comes when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_router.faults.budget import RetryBudget

WINDOW = 10.0
steps = st.lists(st.tuples(st.floats(0, 4), st.sampled_from(["request", "take"])), max_size=300)


@given(steps, st.floats(0, 1), st.integers(0, 5))
def test_it_is_never_exceeded(steps: list[tuple[float, str]], share: float, floor: int) -> None:
    """Counted afresh from everything that has happened, at each try that is granted."""
    budget, now = RetryBudget(share, floor, WINDOW), 0.0
    requests: list[float] = []
    extras: list[float] = []
    for seconds, step in steps:
        now += seconds
        if step == "request":
            requests.append(now)
            budget.note_request(now)
        elif budget.take(now):
            extras.append(now)
            recent = [at for at in requests if at > now - 1.2 * WINDOW]
            assert sum(at > now - WINDOW for at in extras) <= max(floor, share * len(recent))
    assert len(extras) <= len(requests) * share + floor * (now / WINDOW + 1)


@given(st.integers(0, 200), st.integers(0, 20))
def test_it_lends_all_that_there_is(requests: int, floor: int) -> None:
    budget = RetryBudget(0.1, floor, WINDOW)
    for _ in range(requests):
        budget.note_request(1.0)
    granted = sum(budget.take(2.0) for _ in range(300))
    assert granted == max(floor, requests // 10)
    assert budget.left(2.0) == 0


def test_what_is_not_used_lapses() -> None:
    budget = RetryBudget(0.5, 0, WINDOW)
    for _ in range(10):
        budget.note_request(0.0)
    assert budget.left(WINDOW) == 5
    assert budget.left(1.2 * WINDOW) == 0
    assert not budget.take(1.2 * WINDOW)


def test_a_quiet_router_may_retry_and_again_after_a_window() -> None:
    budget = RetryBudget(0.1, 1, WINDOW)
    assert [budget.take(at) for at in (0.0, 1.0, WINDOW, 1.2 * WINDOW)] == [True, False, False, True]


def test_it_holds_no_more_than_its_slices() -> None:
    budget = RetryBudget(0.1, 1, WINDOW)
    for step in range(10_000):
        budget.note_request(step * 0.01)
    assert len(budget._tally._slices) <= 12
    assert 100 <= budget.left(100.0) <= 110, "ten seconds, and at most the slice that lapses next"
