"""An estimate follows what it is told, and says how sure it is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.estimate import Average, Estimate

values = st.floats(1e-6, 1e3)
weights = st.floats(0.01, 100.0)


@given(st.lists(st.tuples(values, weights), min_size=1))
def test_the_mean_lies_among_what_was_seen(samples: list[tuple[float, float]]) -> None:
    average = Average(10.0)
    assert average.estimate is None
    for value, weight in samples:
        average.note(value, weight)
    seen = [value for value, _ in samples]
    learned = average.estimate
    assert learned is not None
    assert min(seen) * (1 - 1e-9) <= learned.mean <= max(seen) * (1 + 1e-9)
    assert 0 <= learned.deviation < math.inf


@given(values, values)
def test_what_is_always_the_same_is_soon_believed(value: float, before: float) -> None:
    average = Average(4.0)
    average.note(before)
    for _ in range(200):
        average.note(value)
    learned = average.estimate
    assert learned is not None
    assert learned.mean == pytest.approx(value, rel=1e-3)
    assert learned.deviation == pytest.approx(0.0, abs=1e-3 * max(value, before))


def test_what_varies_is_known_to() -> None:
    average = Average(50.0)
    for i in range(1000):
        average.note(1.0 if i % 2 else 3.0)
    learned = average.estimate
    assert learned is not None
    assert learned.mean == pytest.approx(2.0, rel=0.05)
    assert learned.deviation == pytest.approx(1.0, rel=0.05)


@given(st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_one_heavy_sample_weighs_as_much_as_many_light_ones(value: float, weight: float) -> None:
    heavy, light = Average(20.0), Average(20.0)
    heavy.note(1.0)
    light.note(1.0)
    heavy.note(value, weight)
    for _ in range(10):
        light.note(value, weight / 10)
    assert heavy.estimate is not None and light.estimate is not None  # noqa: PT018
    assert heavy.estimate.mean == pytest.approx(light.estimate.mean)


@given(st.builds(Estimate, values, values), st.floats(0.0, 5.0))
def test_bounds_lie_on_their_sides_and_time_never_runs_back(estimate: Estimate, deviations: float) -> None:
    assert 0 < estimate.lower(deviations) <= estimate.mean <= estimate.upper(deviations)


def test_of_many_and_of_two_in_a_row() -> None:
    assert Estimate(2.0, 0.5) * 4 == Estimate(8.0, 2.0)
    assert Estimate(2.0, 0.5) + Estimate(1.0, 0.25) == Estimate(3.0, 0.75)
