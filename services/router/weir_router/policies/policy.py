"""What a policy is: a pure function from candidates and a request to an order of preference. It makes no call.

`choose` has already left out whoever may not take the request, so that no policy can choose a dead or an incapable
worker; a policy only orders those who may. What this router has routed counts in the candidates at once, before the
next choice is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, overload

from weir_router.fleet.model_version import Version
from weir_router.fleet.views import ExecutorModel, ExecutorView

# What an answer is taken to need where the client has set it no limit: only loads are compared by it.
_USUAL_COMPLETION_TOKENS: Final = 256
_NO_TERMS: Final[Mapping[str, float]] = {}


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
    # What `ExecutorModel.numerics` must be; None: anything.
    numerics: str | None = None
    # Requests that belong together; empty: it belongs to none.
    session: str = ""
    # 16 bytes for each full block of the prompt, of so many tokens; empty: nobody is asked who holds them.
    block_hashes: bytes = b""
    block_size: int = 0
    # The one revision that it is for; empty: whichever its version has.
    revision: str = ""
    # What it needs of workers outside the suite; None: none of them can take it.
    needs: frozenset[str] | None = None
    # Instance ids of the routers through which it has come.
    via: tuple[str, ...] = ()
    # From its arrival at a worker to its first token at most; None: however long it takes.
    max_ttft_seconds: float | None = None
    # Of the whole request, in millionths of a unit of a worker's currency; None: whatever it costs.
    max_cost_micros: int | None = None
    # Leading tokens of the prompt that an executor is believed to hold, by its address. One that is not named here has
    # not said yet what it holds.
    cached_tokens: Mapping[str, int] = field(default_factory=dict)

    @property
    def expected_tokens(self) -> int:
        """What the request is taken to add to a worker's load, the same on each."""
        per_output = _USUAL_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return self.prompt_tokens + self.n * per_output


@dataclass(slots=True)  # not frozen, which would take four times as long to make for each worker and request
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

    @property
    def weighs_prefixes(self) -> bool:
        """Whether it looks at `Demand.cached_tokens`, which cost something to find."""
        ...

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        """Each of the candidates, of which there is at least one, once: best first."""
        ...


class Ranking(Sequence[Scored]):
    """Candidates best first. What is thought of one is only put together where somebody looks at it."""

    __slots__ = ("_candidates", "_order", "_scores", "_terms")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        scores: Sequence[float],
        order: Sequence[int],
        terms: Callable[[int], Mapping[str, float]] = lambda _: _NO_TERMS,
    ):
        """`order` has each index of `candidates` once; `terms` are asked for by such an index."""
        self._candidates, self._scores, self._order, self._terms = candidates, scores, order, terms

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, position: int) -> Scored: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[Scored]: ...

    def __getitem__(self, position: int | slice) -> Scored | Sequence[Scored]:
        if isinstance(position, slice):
            return [self._scored(index) for index in self._order[position]]
        return self._scored(self._order[position])

    def _scored(self, index: int) -> Scored:
        return Scored(self._candidates[index], self._scores[index], self._terms(index))


def lowest_first(scores: Sequence[float], turn: int) -> list[int]:
    """Indexes by score; equals are turned so that a request's own number decides which of them comes first."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    best = scores[order[0]]
    ties = 1
    while ties < len(order) and scores[order[ties]] == best:
        ties += 1
    first = turn % ties
    return [*order[first:ties], *order[:first], *order[ties:]] if first else order
