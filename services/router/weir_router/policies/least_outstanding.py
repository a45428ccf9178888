"""`least_outstanding_tokens`: the executor with the fewest tokens still to be prefilled or generated, for its share.

This request counts as if it were there already, and a worker that is new counts as fuller than it is: it fills to the
share of its part that it is to get. What other routers have routed counts as of the worker's newest report. Among
equals the request's own number decides, so that equal workers take turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from weir_router.policies.load import loads, share, shares
from weir_router.policies.policy import Candidate, Demand, Ranking, Scored, lowest_first


class LeastOutstandingTokens:
    name = "least_outstanding_tokens"
    weighs_prefixes = False

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        scores = loads(candidates, shares(candidates), demand)
        return Ranking(
            candidates,
            scores,
            lowest_first(scores, demand.turn),
            lambda index: load_terms(candidates[index]),
        )


def load_terms(candidate: Candidate) -> dict[str, float]:
    executor = candidate.executor
    return {"outstanding_tokens": float(executor.outstanding_tokens), "share": share(executor)}
