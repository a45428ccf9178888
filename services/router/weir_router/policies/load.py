"""How loaded a worker is beside others: the tokens it owes, against the share of the work that it is there for.

A worker's share is its weight, less while it is new (`ramp`). One of half the share is as loaded by half the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from weir_router.fleet.views import ExecutorView
from weir_router.policies.policy import Candidate, Demand

# One with no share at all takes what nobody else can.
_LEAST_SHARE: Final = 1e-6


def share(executor: ExecutorView) -> float:
    """Above 0."""
    part = executor.traits.weight * executor.ramp
    return part if part > _LEAST_SHARE else _LEAST_SHARE


def shares(candidates: Sequence[Candidate]) -> list[float]:
    return [share(candidate.executor) for candidate in candidates]


def loads(candidates: Sequence[Candidate], shares: Sequence[float], demand: Demand) -> list[float]:
    """Tokens per share that each would owe if it were given the request too."""
    own = demand.expected_tokens
    return [(c.executor.outstanding_tokens + own) / part for c, part in zip(candidates, shares, strict=True)]


def even_load(candidates: Sequence[Candidate], shares: Sequence[float], demand: Demand) -> float:
    """Tokens per share that each would owe, this request included, if all that they owe were spread evenly."""
    return (sum([c.executor.outstanding_tokens for c in candidates]) + demand.expected_tokens) / sum(shares)
