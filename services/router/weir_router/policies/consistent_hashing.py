"""`consistent_hashing`: requests of one session go to one worker, as long as that has no more than its bounded part.

Each session has its own order of all workers, by weighted rendezvous hashing (Thaler and Ravishankar, 1998; weights as
in Schindelhauer and Schomaker, 2005): a worker that comes or goes moves only the sessions that are, or were, its own.
The first in that order which owes less than `load_bound` times its even part takes the request: Mirrokni, Thorup and
Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018. A session that a full worker cannot take goes to its
own second, always the same one.

A request of no session goes to the least loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from pydantic import Field

from weir_chassis.toml_config import Table
from weir_router.policies.draws import mix, name_bits, unit
from weir_router.policies.least_outstanding import LeastOutstandingTokens, load_terms
from weir_router.policies.load import even_load, shares
from weir_router.policies.policy import Candidate, Demand, Ranking, Scored


class ConsistentHashingOptions(Table):
    load_bound: float = Field(default=1.25, gt=1.0, le=100.0, description="times its even part that a worker may owe")
    # Below, a session's second request would leave its worker only because nobody else has anything to do.
    spare_tokens: int = Field(default=4096, ge=0, le=10**9, description="owed by a worker that is never too loaded")


class ConsistentHashing:
    name = "consistent_hashing"
    weighs_prefixes = False

    def __init__(self, options: ConsistentHashingOptions):
        self._options = options
        self._without_session = LeastOutstandingTokens()

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        if not demand.session:
            return self._without_session.rank(candidates, demand)
        parts = shares(candidates)
        session, limit = name_bits(demand.session), self._options.load_bound * even_load(candidates, parts, demand)
        distances = [
            _distance(session, one.executor.address, part) for one, part in zip(candidates, parts, strict=True)
        ]
        excess = [self._excess(one, part, limit) for one, part in zip(candidates, parts, strict=True)]
        # Who has too much comes after all who have not, in the session's order too.
        farthest = max(distances)
        scores = [far + (farthest if over else 0.0) for far, over in zip(distances, excess, strict=True)]
        order = sorted(range(len(scores)), key=scores.__getitem__)
        return Ranking(
            candidates,
            scores,
            order,
            lambda index: {"distance": distances[index], "excess": excess[index], **load_terms(candidates[index])},
        )

    def _excess(self, candidate: Candidate, part: float, limit: float) -> float:
        """Tokens per share that it owes beyond what it may."""
        owed = candidate.executor.outstanding_tokens
        return 0.0 if owed <= self._options.spare_tokens else max(0.0, owed / part - limit)


def _distance(session: int, address: str, part: float) -> float:
    """Of the worker from the session: exponentially distributed, so that the nearest is one by its share."""
    return -log(1.0 - unit(mix(session ^ name_bits(address)))) / part
