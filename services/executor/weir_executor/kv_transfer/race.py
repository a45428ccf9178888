"""Loading against computing: which leading blocks to load, and when to give it up. Pure.

A prompt's blocks must be there in order, so the choice is a number: so many leading blocks are loaded, the others are
computed. What it gains is the time that computing them takes, less the time that loading them takes beyond the wait for
a turn in the engine, for it is loaded meanwhile. An unsure guess counts against loading: the slow end of what it may
take is held against the fast end of computing.

A load that was begun is a bet, and is ended like one: what has come is kept, and when nothing has come for as long as
computing the rest takes, the rest is computed (the rule of ski rental: at most twice the better choice's cost, whatever
the store does; Karlin et al., "Competitive snoopy caching", 1988). A few blocks that are tried only to learn are given
as long as computing all that the store holds takes: a tier's latency is the same for few, and would never be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from weir_executor.estimate import Estimate
from weir_executor.kv_transfer.plan import TierRange
from weir_executor.kv_transfer.predictor import Computing, LoadPredictor

# Five of six loads are faster than that.
_DEVIATIONS = 1.0
# One in so many that would be computed is tried on a few blocks all the same: a store that was slow once may be fast
# again, and nobody would ever see it. The first of them sooner, for it may have been slow only once.
_EXPLORE_FIRST, _EXPLORE_EVERY = 2, 16

_NOTHING = Estimate(0.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """Load the blocks of `ranges`, the leading ones; the others are computed. None: compute all."""

    ranges: Sequence[TierRange] = ()
    load: Estimate = _NOTHING  # seconds
    compute: Estimate | None = None  # seconds it would take to compute them; None: unknown
    explores: bool = False  # it would not pay, as far as is known
    stake: Estimate | None = None  # seconds that waiting in vain may cost; None: those of computing them

    @property
    def blocks(self) -> int:
        return sum(each.blocks for each in self.ranges)


class Race:
    """Decides for one store."""

    def __init__(self, predictor: LoadPredictor, block_bytes: int, min_blocks: int) -> None:
        """`min_blocks`: fewer are never loaded, nor asked for."""
        self._predictor, self._block_bytes, self._min_blocks = predictor, block_bytes, min_blocks
        self._computed_in_a_row, self._explore_at = 0, _EXPLORE_FIRST

    def worth_asking(self, blocks: int, computing: Computing) -> bool:
        """Whether the store's answer comes sooner than so many blocks are computed."""
        compute = computing.blocks(blocks)
        if compute is None:
            return True
        answer = self._predictor.match.upper(_DEVIATIONS)
        return answer < (compute + computing.ahead).upper(_DEVIATIONS) or self._explores()

    def answer_seconds(self, blocks: int, computing: Computing) -> float:
        """How long to wait for an answer about so many blocks: as it would take to compute them, or as the store's
        answers usually take."""
        compute = computing.blocks(blocks)
        if compute is None:
            return math.inf
        return max(computing.ahead.lower(_DEVIATIONS) + compute.mean, self._predictor.match.upper(_DEVIATIONS))

    def decide(self, ranges: Sequence[TierRange], computing: Computing) -> Decision:
        """`ranges` are what the store holds of what is wanted."""
        choices = [self._choice(leading, computing) for leading in _leading(ranges)]
        choices = [choice for choice in choices if choice.blocks >= self._min_blocks]
        if not choices:
            return Decision()
        if computing.block is None:
            return choices[-1]  # nothing to hold against it but the deadline
        best = max(choices, key=lambda choice: self._gain(choice, computing.ahead))
        if self._gain(best, computing.ahead) > 0:
            self._computed_in_a_row, self._explore_at = 0, _EXPLORE_FIRST
            return best
        return self._try_or_compute(ranges, computing)

    def _choice(self, ranges: Sequence[TierRange], computing: Computing) -> Decision:
        load = self._predictor.seconds(ranges, self._block_bytes)
        return Decision(ranges, load, computing.blocks(sum(each.blocks for each in ranges)))

    def _gain(self, choice: Decision, ahead: Estimate) -> float:
        """Seconds by which it is faster than computing, if luck is against it. Where nothing was measured yet there is
        no luck, only the guess itself: who never tried would never know."""
        assert choice.compute is not None, choice
        deviations = _DEVIATIONS if self._predictor.knows(choice.ranges) else 0.0
        waited = max(0.0, choice.load.upper(deviations) - ahead.lower(deviations))
        return choice.compute.lower(deviations) - waited

    def _try_or_compute(self, ranges: Sequence[TierRange], computing: Computing) -> Decision:
        """A tier that was never tried is at once: all that is known of it was made up."""
        few = cut(ranges, self._min_blocks)
        if self._predictor.tried(few) and not self._explores():
            return Decision()
        stake = computing.blocks(sum(each.blocks for each in ranges))
        return replace(self._choice(few, computing), explores=True, stake=stake)

    def _explores(self) -> bool:
        self._computed_in_a_row += 1
        if self._computed_in_a_row < self._explore_at:
            return False
        self._computed_in_a_row, self._explore_at = 0, min(2 * self._explore_at, _EXPLORE_EVERY)
        return True


class Patience:
    """When a load that is under way has taken too long. Times are monotonic seconds."""

    def __init__(
        self, decision: Decision, ahead: Estimate, *, asked_at: float, begins_at: float, most_seconds: float
    ) -> None:
        """The request waits since `asked_at`, the load begins at `begins_at`. `most_seconds` since the former, whatever
        computing takes."""
        self._blocks, self._stake = decision.blocks, decision.stake or decision.compute
        # Before its turn it keeps nobody waiting; and nothing is late before it is behind its own prediction.
        self._turn_at = asked_at + ahead.lower(_DEVIATIONS)
        self._predicted_at = begins_at + decision.load.upper(_DEVIATIONS)
        self._last = asked_at + most_seconds
        if self._stake is not None:
            self._last = min(self._last, self._turn_at + self._stake.mean)
        self._came, self._moved_at = 0, begins_at

    def note(self, blocks: int, now: float) -> None:
        """So many have come by now."""
        self._came, self._moved_at = blocks, now

    def seconds_left(self, now: float) -> float:
        """Until it should be given up, unless more comes before."""
        if self._stake is None:
            return self._last - now
        rest = self._stake.mean * (self._blocks - self._came) / self._blocks
        stalled_at = max(self._moved_at, self._turn_at) + rest
        return min(self._last, max(stalled_at, self._predicted_at)) - now


def cut(ranges: Sequence[TierRange], blocks: int) -> list[TierRange]:
    """The ranges of the first so many blocks."""
    leading = []
    for each in ranges:
        if blocks > 0 and each.blocks > 0:
            leading.append(TierRange(min(each.blocks, blocks), each.tier))
        blocks -= each.blocks
    return leading


def _leading(ranges: Sequence[TierRange]) -> Iterator[Sequence[TierRange]]:
    """The first range, the first two, … Within a range each block costs and gains the same: it is all or nothing."""
    return (ranges[: i + 1] for i in range(len(ranges)))
