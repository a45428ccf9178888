"""`least_outstanding_tokens`: the executor with the fewest tokens still to be prefilled or generated.

What other routers have routed counts as of the worker's newest report. Among equals the request's own number decides,
so that equal workers take turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from weir_router.policies.policy import Candidate, Demand, Scored, in_turn


class LeastOutstandingTokens:
    name = "least_outstanding_tokens"

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        scored = [Scored(candidate, float(candidate.executor.outstanding_tokens)) for candidate in candidates]
        return in_turn(scored, demand.turn)
