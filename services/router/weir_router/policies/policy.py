"""What a policy is: a pure function from candidates and a request to an order of preference. It makes no call.

`choose` has already left out whoever may not take the request, so that no policy can choose a dead or an incapable
worker; a policy only orders those who may. What this router has routed counts in the candidates at once, before the
next choice is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from weir_router.fleet.model_version import Version
from weir_router.fleet.snapshot import ExecutorModel, ExecutorView


@dataclass(frozen=True, slots=True)
class Demand:
    """What the choice depends on. `turn` is any number that differs from request to request."""

    version: Version
    prompt_tokens: int
    # Per output; None: up to the model's context; 0: nothing is generated, and a vector is wanted.
    max_tokens: int | None
    n: int
    turn: int
    # Addresses of workers of any kind that failed this request.
    excluded: frozenset[str] = frozenset()
    # A fingerprint; empty: none.
    adapter: str = ""
    # Requests that belong together; empty: it belongs to none.
    session: str = ""
    # Leading tokens of the prompt that an executor is believed to hold, by its address.
    cached_tokens: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An executor that may take the request, and what it serves."""

    executor: ExecutorView
    model: ExecutorModel

    @property
    def address(self) -> str:
        return self.executor.address


@dataclass(frozen=True, slots=True)
class Scored:
    """The lowest score is chosen. `terms`: what it is made of, by name, with its unit in the name."""

    candidate: Candidate
    score: float
    terms: Mapping[str, float] = field(default_factory=dict)


class Policy(Protocol):
    @property
    def name(self) -> str: ...

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        """Each of the candidates, of which there is at least one, once: best first."""
        ...


def in_turn(scored: Sequence[Scored], turn: int) -> list[Scored]:
    """By score; equals are turned so that a request's own number decides which of them comes first."""
    ordered = sorted(scored, key=lambda one: one.score)
    ties = sum(one.score == ordered[0].score for one in ordered)
    first = turn % ties
    return [*ordered[first:ties], *ordered[:first], *ordered[ties:]]
