"""What a request costs: exact, and rounded up once."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_router.fleet.views import Price
from weir_router.policies.price import cost_micros, exact_cost_micros

micros = st.integers(0, 10**9)


@given(st.builds(Price, micros, micros, micros), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_cost_is_the_sum_of_its_parts_rounded_up(price: Price, uncached: int, cached: int, completion: int) -> None:
    exact = sum(
        Fraction(tokens * each, 10**6)
        for tokens, each in (
            (uncached, price.prompt_micros),
            (cached, price.cached_prompt_micros),
            (completion, price.completion_micros),
        )
    )
    asked = (price, uncached + cached, cached, completion)
    assert cost_micros(*asked) == ceil(exact)
    assert exact_cost_micros(*asked) == pytest.approx(float(exact))


def test_more_cached_than_there_is_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        cost_micros(Price(1, 1, 1), 5, 6, 0)
