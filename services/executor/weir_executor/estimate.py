"""What something takes, learned from how long it took: a mean and how far off it was, the newest counting most. Pure.

Exponentially weighted mean and variance, one pass (Finch, "Incremental calculation of weighted mean and variance",
2009, section 9), each sample with a weight of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, or seconds per something."""

    mean: float
    deviation: float = 0.0

    def upper(self, deviations: float) -> float:
        return self.mean + deviations * self.deviation

    def lower(self, deviations: float) -> float:
        """Never below a tenth of the mean: nothing takes no time, however much it varies."""
        return max(0.1 * self.mean, self.mean - deviations * self.deviation)

    def __mul__(self, count: float) -> Estimate:
        """Of so many in a row. They are slow together: what makes one late, a busy neighbour, makes the others late."""
        return Estimate(self.mean * count, self.deviation * count)

    def __add__(self, other: Estimate) -> Estimate:
        """One after the other, for the same reason with deviations that add up."""
        return Estimate(self.mean + other.mean, self.deviation + other.deviation)


class Average:
    """`estimate` is None before the first sample."""

    def __init__(self, memory: float) -> None:
        """`memory`: the weight of samples after which an old one counts for a third."""
        assert memory > 0, memory
        self._memory = memory
        self.estimate: Estimate | None = None

    def note(self, value: float, weight: float = 1.0) -> None:
        """`weight` in the unit of `memory`: of tokens, bytes, or samples."""
        assert value >= 0, value
        assert weight > 0, weight
        known = self.estimate
        if known is None:
            self.estimate = Estimate(value, value / 2)  # one sample says little
            return
        share = -math.expm1(-weight / self._memory)
        difference = value - known.mean
        variance = (1 - share) * (known.deviation**2 + share * difference**2)
        self.estimate = Estimate(known.mean + share * difference, math.sqrt(variance))
