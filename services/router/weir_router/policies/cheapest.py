"""`cheapest`: the executor on which the request costs least, among those that should begin to answer in time.

In time is `max_queue_seconds` before its prompt is begun, and the request's own limit to its first token if it has one:
a price is no reason to let a request wait while others idle. Equal prices go by load. Who has no price is dearer than
anybody who has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from pydantic import Field

from weir_chassis.toml_config import Table
from weir_router.policies.least_outstanding import load_terms
from weir_router.policies.load import loads, shares
from weir_router.policies.policy import Candidate, Demand, Ranking, Scored
from weir_router.policies.prediction import queue_seconds, token_seconds, uncached_tokens
from weir_router.policies.price import exact_cost_micros


class CheapestOptions(Table):
    max_queue_seconds: float = Field(
        default=1.0, gt=0.0, le=3600.0, description="predicted wait beyond which a worker is not cheap"
    )


class Cheapest:
    name = "cheapest"
    weighs_prefixes = True

    def __init__(self, options: CheapestOptions):
        self._options = options

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        costs = [request_cost(candidate, demand) for candidate in candidates]
        seconds = token_seconds(candidates)
        waits = [queue_seconds(one.executor, each) for one, each in zip(candidates, seconds, strict=True)]
        loaded = loads(candidates, shares(candidates), demand)
        late = [self._is_late(*one, demand) for one in zip(candidates, waits, seconds, strict=True)]
        count = len(candidates)
        order = sorted(
            range(count),
            key=lambda i: (late[i], waits[i] if late[i] else costs[i], loaded[i], (i - demand.turn) % count),
        )
        return Ranking(
            candidates,
            [inf if over else cost for over, cost in zip(late, costs, strict=True)],
            order,
            lambda index: {"queue_seconds": waits[index], **load_terms(candidates[index])},
        )

    def _is_late(self, candidate: Candidate, wait: float, seconds: float, demand: Demand) -> bool:
        limit, own = self._options.max_queue_seconds, demand.max_ttft_seconds
        return wait > limit or (own is not None and wait + uncached_tokens(candidate, demand) * seconds > own)


def request_cost(candidate: Candidate, demand: Demand) -> float:
    """In millionths of a unit of the worker's currency; infinite where it has no price."""
    price = candidate.executor.traits.price
    if price is None:
        return inf
    cached = min(demand.cached_tokens.get(candidate.address, 0), demand.prompt_tokens)
    return exact_cost_micros(price, demand.prompt_tokens, cached, demand.expected_tokens - demand.prompt_tokens)
