"""A shadow's budget, whatever is taken and given back: never more tokens than a minute has, nor requests at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_router.models.shadow_budget import ShadowBudget


@given(
    st.integers(1, 1000),
    st.integers(1, 4),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 1200), st.floats(0, 1)), max_size=60),
)
def test_never_more_than_the_minutes_that_have_passed_allow(
    per_minute: int, most: int, steps: list[tuple[float, int, float]]
) -> None:
    budget, now, spent, running = ShadowBudget(per_minute, most, 0.0), 0.0, 0, list[int]()
    for pause, tokens, ending in steps:
        now += pause
        if running and ending < 0.5:
            taken = running.pop()
            used = int(taken * ending)
            spent -= taken - used
            budget.give_back(taken - used, now)
        if budget.take(tokens, now):
            running.append(tokens)
            spent += tokens
        assert len(running) <= most
        assert spent <= per_minute * (1 + now / 60) + 1e-6


def test_what_was_not_used_lapses() -> None:
    budget = ShadowBudget(60, 2, 0.0)
    assert not budget.take(61, 1e6)
    assert budget.take(60, 1e6)
    assert not budget.take(1, 1e6)
    assert budget.take(30, 1e6 + 30)


def test_one_that_is_over_makes_room_at_once() -> None:
    budget = ShadowBudget(100, 1, 0.0)
    assert budget.take(100, 0.0)
    budget.give_back(90, 0.0)
    assert not budget.take(91, 0.0)
    assert budget.take(90, 0.0)
