"""`prefix_aware`: the executor that should give the first token soonest, unless it has too much to do already.

    cost = (queue + prefill of what it does not hold) / share + load        seconds

    queue      prompts before this one; what this router has routed counts at once, so no two choices see the same
    load       0 for who owes its even part or less; at `load_bound` times that part, as much as a whole prompt's
               prefill, which is the most that a cache can save

Beyond the bound a worker comes after all that are within it, whatever it holds. So no cache can pull a worker down, and
nobody who holds nothing is flooded because of that either. Costs are drawn apart by up to `jitter`: routers that know
the same stale loads, and workers that are alike, do not make one worker the first of all. One request in many
(`explore`) goes where it would go if nobody held anything, so that what is asked for most comes to be held by more than
one.

While nobody has said yet what it holds (the router has just started), this is the least outstanding tokens; a worker
that alone has not said it is taken to hold nothing.

The sum of queue, prefill and load is NVIDIA Dynamo's KV router's and llm-d's scorers'; the bound is that of Mirrokni,
Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018; that a cache must never outweigh balance
is what SGLang's router learned (sgl-project/sglang#14305), that a choice must count before the next one is made, what
llm-d's did (llm-d/llm-d-router#346).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import Field

from weir_chassis.toml_config import Table
from weir_router.policies.draws import mix, name_bits, spread, unit
from weir_router.policies.least_outstanding import LeastOutstandingTokens
from weir_router.policies.load import even_load, loads, share, shares
from weir_router.policies.policy import Candidate, Demand, Ranking, Scored, lowest_first
from weir_router.policies.prediction import (
    first_token_seconds,
    queue_seconds,
    token_seconds,
    uncached_tokens,
    waits_for_blocks,
)


class PrefixAwareOptions(Table):
    load_bound: float = Field(default=2.0, gt=1.0, le=100.0, description="times its even part that a worker may owe")
    # Below, loads differ by chance: some requests of a usual size.
    spare_tokens: int = Field(default=4096, ge=0, le=10**9, description="owed by a worker that is never too loaded")
    explore: float = Field(default=0.01, ge=0.0, le=0.5, description="share of the requests that ignore what is held")
    jitter: float = Field(default=0.05, ge=0.0, le=1.0, description="by how much equal costs are drawn apart")


class PrefixAware:
    name = "prefix_aware"
    weighs_prefixes = True

    def __init__(self, options: PrefixAwareOptions):
        self._options = options
        self._cold = LeastOutstandingTokens()

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        if not any(candidate.address in demand.cached_tokens for candidate in candidates):
            return self._cold.rank(candidates, demand)
        drawn = mix(demand.turn)
        if unit(drawn) < self._options.explore:
            demand = replace(demand, cached_tokens={})
        seconds, parts = token_seconds(candidates), shares(candidates)
        excess = self._excess(candidates, parts, demand)
        factors = [1.0 + self._options.jitter * spread(drawn ^ name_bits(c.executor.address)) for c in candidates]
        costs = [
            (first_token_seconds(candidate, demand, each) / part + over * demand.prompt_tokens * each) * factor
            for candidate, part, each, over, factor in zip(candidates, parts, seconds, excess, factors, strict=True)
        ]
        # Who is beyond the bound comes after all that are not, by its cost too.
        most = max(costs)
        scores = [cost + most if over >= 1.0 else cost for cost, over in zip(costs, excess, strict=True)]
        return Ranking(
            candidates,
            scores,
            lowest_first(scores, demand.turn),
            lambda index: _terms(candidates[index], demand, seconds[index], excess[index]),
        )

    def _excess(self, candidates: Sequence[Candidate], parts: Sequence[float], demand: Demand) -> list[float]:
        """How far each would be from its even part to the bound: 0 at that part or below, 1 at the bound.

        One whose blocks are all in use is beyond it, however few tokens it owes.
        """
        least = float(self._options.spare_tokens + demand.expected_tokens)
        even = max(even_load(candidates, parts, demand), least)
        room = (self._options.load_bound - 1.0) * even
        excess = [(load - even) / room if load > even else 0.0 for load in loads(candidates, parts, demand)]
        return [
            max(1.0, over) if waits_for_blocks(candidate, demand) else over
            for candidate, over in zip(candidates, excess, strict=True)
        ]


def _terms(candidate: Candidate, demand: Demand, seconds: float, excess: float) -> Mapping[str, float]:
    return {
        "queue_seconds": queue_seconds(candidate.executor, seconds),
        "prefill_seconds": uncached_tokens(candidate, demand) * seconds,
        "load_seconds": excess * demand.prompt_tokens * seconds,
        "excess": excess,
        "cached_tokens": float(demand.cached_tokens.get(candidate.address, 0)),
        "outstanding_tokens": float(candidate.executor.outstanding_tokens),
        "share": share(candidate.executor),
    }
