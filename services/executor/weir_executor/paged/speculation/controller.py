"""How many drafts pay. Pure: seconds and acceptance are told.

A step of n tokens takes about `base + n * per_token` seconds, and drafting takes `per_draft` for each draft of the row
that wants most. A row whose drafts stand with probability a comes to 1 + a + … + aᵏ tokens with k drafts. What is
maximised is the tokens of all rows per second, the goodput of Liu et al., "Optimizing Speculative Decoding for Serving
Large Language Models Using Goodput" (arXiv:2406.14066):

- alone, a step's time is mostly `base` (weights are read once for any number of tokens), and drafts are nearly free;
- in a large batch it is mostly `n * per_token`, every draft that does not stand takes a neighbour's time, and drafting
  stops by itself; it begins again only when it promises `_GAIN` more than going without, so that it does not flicker.

While nobody drafts nothing is learned, and what was measured in a bad moment would stand for ever. So one row tries
again now and then, ever more rarely as that brings nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log

# Until acceptance is measured: hopeful, so that it is. And with the weight of how many measured drafts that counts.
_PRIOR_ACCEPTANCE, _PRIOR_WEIGHT = 0.9, 2.0
# What a measured draft still weighs a step later: acceptance changes with what is being said.
_FADE = 0.95
_GAIN = 1.05
# Until steps are measured: so many tokens take as long as reading the weights; what one draft takes, in steps of one.
_PRIOR_BALANCE, _PRIOR_DRAFT = 16.0, 0.15
_STEP_FADE = 0.98  # of a step's weight in what steps cost
_MIN_STEPS = 4.0  # fewer say nothing
# Steps without drafts before one row tries again, for two steps: in the first a draft model catches up.
_FIRST_REST, _LONGEST_REST, _TRIES = 32, 1024, 2
# Of a rest's steps, each so many is looked at: deciding on nothing for a large batch takes time too.
_LOOK_EVERY = 8


class Acceptance:
    """How likely a sequence's next draft stands, if those before it do. `prior` is what others' drafts came to."""

    __slots__ = ("_prior", "_stood", "_tried")

    def __init__(self, prior: float = _PRIOR_ACCEPTANCE) -> None:
        self._prior = prior
        self._stood = self._tried = 0.0

    @property
    def rate(self) -> float:
        return (self._stood + self._prior * _PRIOR_WEIGHT) / (self._tried + _PRIOR_WEIGHT)

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """A step's outcome. One without drafts brings back the belief that they may stand, so that they are tried."""
        assert 0 <= num_accepted <= num_drafts, (num_accepted, num_drafts)
        self._stood = self._stood * _FADE + num_accepted
        self._tried = self._tried * _FADE + min(num_accepted + 1, num_drafts)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """In seconds."""

    base: float
    per_token: float
    per_draft: float  # of all rows at once

    def seconds(self, num_tokens: int, num_drafts: int = 0) -> float:
        return self.base + self.per_token * num_tokens + self.per_draft * num_drafts


class CostMeter:
    """Learns what a step costs from how many tokens it had and how long it took: a line, fitted to the latest steps."""

    __slots__ = ("_sum_n", "_sum_nn", "_sum_t", "_sum_tn", "_weight")

    def __init__(self) -> None:
        self._weight = self._sum_n = self._sum_t = self._sum_nn = self._sum_tn = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        added = (1.0, num_tokens, seconds, num_tokens * num_tokens, seconds * num_tokens)
        sums = (self._weight, self._sum_n, self._sum_t, self._sum_nn, self._sum_tn)
        faded = (total * _STEP_FADE + more for total, more in zip(sums, added, strict=True))
        self._weight, self._sum_n, self._sum_t, self._sum_nn, self._sum_tn = faded

    def costs(self, per_draft: float | None) -> StepCosts:
        """Base and slope; while steps are few or all alike, in the proportion that is usual."""
        if self._weight < _MIN_STEPS:
            return StepCosts(1.0, 1.0 / _PRIOR_BALANCE, _PRIOR_DRAFT)
        tokens, seconds = self._sum_n / self._weight, self._sum_t / self._weight
        spread = self._sum_nn / self._weight - tokens * tokens
        together = self._sum_tn / self._weight - seconds * tokens
        usual = seconds / (_PRIOR_BALANCE + tokens)
        per_token = usual if spread < 1.0 else min(max(0.0, together / spread), seconds / tokens)
        base = seconds - per_token * tokens
        return StepCosts(base, per_token, _PRIOR_DRAFT * (base + per_token) if per_draft is None else per_draft)


class Controller:
    """Says how many drafts each row of a step shall have, and remembers whether there were any in the step before."""

    def __init__(self) -> None:
        self.is_on = True
        self._rest, self._steps_off = _FIRST_REST, 0

    def rests(self) -> bool:
        """Whether this step goes without drafts, unseen. If not, `lengths` decides."""
        if self.is_on or self._steps_off >= self._rest or self._steps_off % _LOOK_EVERY == 0:
            return False
        self._steps_off += 1
        return True

    def lengths(
        self, acceptances: Sequence[float], limits: Sequence[int], num_tokens: int, costs: StepCosts
    ) -> list[int]:
        """For rows whose drafts stand so often and that may have so many, in a step of `num_tokens` without drafts."""
        plain = len(limits) / costs.seconds(num_tokens)
        least = plain * (costs.per_token + costs.per_draft / max(1, len(limits)))
        lengths = [_length(rate, limit, least) for rate, limit in zip(acceptances, limits, strict=True)]
        seconds = costs.seconds(num_tokens + sum(lengths), max(lengths, default=0))
        tokens = sum(expected_tokens(rate, length) for rate, length in zip(acceptances, lengths, strict=True))
        self.is_on = tokens / seconds > plain * (1.0 if self.is_on else _GAIN)
        if self.is_on:
            self._rest, self._steps_off = _FIRST_REST, 0
            return lengths
        return self._try_one(limits)

    def _try_one(self, limits: Sequence[int]) -> list[int]:
        """One draft for the first that may have any, when the rest is over; for the others none."""
        self._steps_off += 1
        if self._steps_off > self._rest + _TRIES:
            self._rest, self._steps_off = min(2 * self._rest, _LONGEST_REST), 1
        tried = next((i for i, limit in enumerate(limits) if limit), None) if self._steps_off > self._rest else None
        return [int(index == tried) for index in range(len(limits))]


def expected_tokens(acceptance: float, num_drafts: int) -> float:
    """Of a row: its drafts that stand, and one more."""
    if acceptance >= 1.0:
        return num_drafts + 1.0
    return (1.0 - acceptance ** (num_drafts + 1)) / (1.0 - acceptance)


def _length(acceptance: float, limit: int, least: float) -> int:
    """The k-th draft adds aᵏ tokens; so many add at least what their time is worth."""
    if least >= 1.0 or acceptance <= 0.0:
        return 0
    most = log(least) / log(acceptance) if least > 0.0 and acceptance < 1.0 else inf
    return int(min(limit, most))
