"""What a worker would make of a request: when it would begin to answer, and what that may cost. Who keeps the limits.

The cost is the highest that it can come to: all of the prompt computed, all tokens drawn that may be, and of a prompt
that nobody here could count as many tokens as it has bytes. So what is chosen within a limit never costs more, whatever
a cache turns out to hold and however long the answer gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weir_chassis.errors import InvalidArgument
from weir_router.policies.policy import Candidate, Demand
from weir_router.policies.prediction import first_token_seconds, token_seconds
from weir_router.policies.price import cost_micros
from weir_router.providers.guess import most_tokens


class LimitsUnmet(InvalidArgument):
    """Nobody who may take the request keeps its limits."""


@dataclass(frozen=True, slots=True)
class Forecast:
    # From now; a prediction.
    ttft_seconds: float
    # At most, in millionths of a unit of the worker's currency; None: it has no price.
    cost_micros: int | None


def forecasts(candidates: Sequence[Candidate], demand: Demand) -> list[Forecast]:
    """Of each, in their order."""
    seconds = token_seconds(candidates)
    return [
        Forecast(first_token_seconds(candidate, demand, each), _highest_cost(candidate, demand))
        for candidate, each in zip(candidates, seconds, strict=True)
    ]


def within_limits(candidates: Sequence[Candidate], demand: Demand) -> Sequence[Candidate]:
    """Those who keep what the request has set. Raises LimitsUnmet when nobody does."""
    if demand.max_ttft_seconds is None and demand.max_cost_micros is None:
        return candidates
    keeping = [
        candidate
        for candidate, forecast in zip(candidates, forecasts(candidates, demand), strict=True)
        if _keeps(forecast, demand)
    ]
    if not keeping:
        limits = {"max_ttft_seconds": demand.max_ttft_seconds, "max_cost_micros": demand.max_cost_micros}
        told = {name: f"{limit:g}" for name, limit in limits.items() if limit is not None}
        raise LimitsUnmet("routing.constraints", f"no worker keeps {told} now", metadata=told)
    return keeping


def _keeps(forecast: Forecast, demand: Demand) -> bool:
    if demand.max_ttft_seconds is not None and forecast.ttft_seconds > demand.max_ttft_seconds:
        return False
    if demand.max_cost_micros is None:
        return True
    return forecast.cost_micros is not None and forecast.cost_micros <= demand.max_cost_micros


def _highest_cost(candidate: Candidate, demand: Demand) -> int | None:
    price = candidate.executor.traits.price
    if price is None:
        return None
    counted = bool(demand.version.revision)
    prompt = demand.prompt_tokens if counted else most_tokens(demand.prompt_tokens)
    room = max(0, candidate.model.max_model_len - demand.prompt_tokens)
    per_output = room if demand.max_tokens is None else demand.max_tokens
    return cost_micros(price, prompt, 0, demand.n * per_output)
