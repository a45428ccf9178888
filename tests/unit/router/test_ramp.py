"""A new worker's share grows to the whole and never falls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_router.fleet.ramp import ramp


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 50))
def test_the_share_grows_with_time_within_its_bounds(seconds: float, more: float, over: float) -> None:
    assert 0.1 <= ramp(seconds, over) <= ramp(seconds + more, over) <= 1.0


def test_it_is_a_tenth_at_first_half_at_half_time_and_whole_at_the_end() -> None:
    assert [ramp(seconds, 10.0) for seconds in (0.0, 5.0, 10.0, 1e9)] == [0.1, 0.5, 1.0, 1.0]


def test_workers_that_came_together_are_equals() -> None:
    assert ramp(3.21, 10.0) == ramp(3.29, 10.0)


def test_without_a_ramp_everybody_gets_all_at_once() -> None:
    assert ramp(0.0, 0.0) == 1.0
