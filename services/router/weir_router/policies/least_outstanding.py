"""`least_outstanding_tokens`: the executor with the fewest tokens still to be prefilled or generated.

This request counts as if it were there already, and a worker that is new counts as fuller than it is: it fills to the
share of its part that it is to get. What other routers have routed counts as of the worker's newest report. Among
equals the request's own number decides, so that equal workers take turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from weir_router.policies.policy import Candidate, Demand, Scored, in_turn


class LeastOutstandingTokens:
    name = "least_outstanding_tokens"

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        return in_turn([_score(candidate, demand) for candidate in candidates], demand.turn)


def _score(candidate: Candidate, demand: Demand) -> Scored:
    outstanding, share = candidate.executor.outstanding_tokens, candidate.executor.ramp
    score = (outstanding + demand.prompt_tokens) / share
    return Scored(candidate, score, {"outstanding_tokens": float(outstanding), "ramp": share})
