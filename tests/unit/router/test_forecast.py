from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.router.views import demand, executor, fleet
from weir_chassis.errors import InvalidArgument
from weir_router.fleet.views import Load, Price
from weir_router.policies.choose import choose
from weir_router.policies.forecast import LimitsUnmet, forecasts, within_limits
from weir_router.policies.least_outstanding import LeastOutstandingTokens
from weir_router.policies.policy import Candidate
from weir_router.policies.price import cost_micros

PRICE = Price(1_000_000, 100_000, 2_000_000)  # a micro for a token of the prompt, two for one that is drawn


def candidate(address: str = "e", *, seconds: float = 0.01, price: Price | None = PRICE, **fields: object) -> Candidate:
    load = Load(epoch=1, sequence=1, age_seconds=0.0, prefill_token_seconds=seconds)
    view = executor(address, price=price, load=load, **fields)  # type: ignore[arg-type]
    assert view.model is not None
    return Candidate(view, view.model)


def test_a_forecast_is_the_time_of_the_prompt_and_the_highest_price() -> None:
    (told,) = forecasts([candidate()], demand(prompt_tokens=10, max_tokens=5, n=3))
    assert (round(told.ttft_seconds, 9), told.cost_micros) == (0.1, 10 + 3 * 5 * 2)


def test_without_a_limit_an_answer_may_fill_the_context() -> None:
    (told,) = forecasts([candidate(max_model_len=100)], demand(prompt_tokens=10, max_tokens=None))
    assert told.cost_micros == 10 + 90 * 2


def test_a_cached_prompt_is_sooner_and_may_yet_cost_all_of_it() -> None:
    wanted = replace(demand(prompt_tokens=10, max_tokens=5), cached_tokens={"e": 9})
    (told,) = forecasts([candidate()], wanted)
    assert (round(told.ttft_seconds, 9), told.cost_micros) == (0.01, 20)


def test_nobody_without_a_price_keeps_a_budget() -> None:
    wanted = replace(demand(), max_cost_micros=10**9)
    with pytest.raises(LimitsUnmet, match="max_cost_micros"):
        within_limits([candidate(price=None)], wanted)
    assert len(within_limits([candidate("a", price=None), candidate("b")], wanted)) == 1


def test_a_choice_is_within_the_limits_or_refused() -> None:
    slow, quick = candidate("slow", seconds=1.0).executor, candidate("quick", seconds=0.001, routed=500).executor
    wanted = replace(demand(prompt_tokens=10), max_ttft_seconds=0.5)
    assert choose(fleet(slow, quick), wanted, LeastOutstandingTokens()).executor == "quick"
    assert choose(fleet(slow, quick), demand(prompt_tokens=10), LeastOutstandingTokens()).executor == "slow"
    with pytest.raises(InvalidArgument, match="max_ttft_seconds"):
        choose(fleet(slow), wanted, LeastOutstandingTokens())


@given(st.integers(1, 90), st.integers(0, 90), st.integers(0, 90), st.integers(0, 90), st.integers(1, 16))
def test_no_answer_costs_more_than_was_forecast(prompt: int, cached: int, drawn: int, asked: int, n: int) -> None:
    (told,) = forecasts([candidate()], demand(prompt_tokens=prompt, max_tokens=asked, n=n))
    real = cost_micros(PRICE, prompt, min(cached, prompt), n * min(drawn, asked))
    assert told.cost_micros is not None
    assert real <= told.cost_micros
