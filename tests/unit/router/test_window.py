from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_router.models.outcome import End, Outcome
from weir_router.models.window import Window, least_increase, wilson

OUTCOMES = st.lists(st.tuples(st.floats(0, 30), st.sampled_from(End), st.none() | st.floats(0, 10)), max_size=60)


def window(*ttfts: float) -> Window:
    filled = Window(seconds=1e6)
    for seconds in ttfts:
        filled.add(Outcome(End.ANSWERED, seconds), now=0.0)
    return filled


@given(OUTCOMES)
def test_a_window_counts_what_a_list_of_the_newest_would(steps: list[tuple[float, End, float | None]]) -> None:
    counted, now, told = Window(seconds=60), 0.0, list[tuple[float, Outcome]]()
    for pause, end, ttft in steps:
        now += pause
        counted.add(Outcome(end, ttft), now)
        told.append((now, Outcome(end, ttft)))
        kept = [outcome for when, outcome in told if when > now - 60]
        assert {end: counted.count(end) for end in End} == {e: sum(o.end is e for o in kept) for e in End}
        assert len(counted) == sum(outcome.end is not End.LEFT for outcome in kept)
        ttfts = sorted(outcome.ttft_seconds for outcome in kept if outcome.ttft_seconds is not None)
        assert counted.num_ttfts == len(ttfts)
        assert counted.slower_than(5.0) == sum(seconds > 5.0 for seconds in ttfts)
        assert counted.ttft_quantile(0.5) == (ttfts[len(ttfts) // 2] if ttfts else None)


def test_a_window_is_bounded() -> None:
    filled = Window(seconds=1e9)
    for number in range(5000):
        filled.add(Outcome(End.FAILED, float(number)), now=float(number))
    assert len(filled) == filled.num_ttfts == 2000
    assert filled.ttft_quantile(0.0) == 3000.0


def test_a_quantile_with_certainty_is_no_less_than_the_plain_one() -> None:
    filled = window(*map(float, range(100)))
    assert (filled.ttft_quantile(0.9), filled.ttft_quantile(0.9, deviations=3.0)) == (90.0, 99.0)
    assert window().ttft_quantile(0.9) is None


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3, at 1.96.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count, 1.959964) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("first", "second", "low"),
    # Newcombe, "Interval estimation for the difference between independent proportions" (1998), table II, method 10.
    [
        ((56, 70), (48, 80), 0.0524),
        ((9, 10), (3, 10), 0.1705),
        ((10, 10), (0, 10), 0.6075),
        ((5, 56), (0, 29), -0.0381),
    ],
)
def test_newcombes_interval_is_the_published_one(first: tuple[int, int], second: tuple[int, int], low: float) -> None:
    assert least_increase(first, second, 1.959964) == pytest.approx(low, abs=5e-5)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_less_than_what_was_seen_is_certain(a: int, b: int, c: int, d: int) -> None:
    first, second = (min(a, b), b), (min(c, d), d)
    found = least_increase(first, second, 3.0)
    if b and d:
        assert found <= first[0] / b - second[0] / d + 1e-12
    else:
        assert found == -1.0
    assert not math.isnan(found)
