"""A canary: a target that gets a little of its alias' traffic first, and more as it proves no worse. Pure.

    1 % ──▶ 5 % ──▶ 25 % ──▶ 50 % ──▶ its weight        each step: time, requests, and no worse than the baseline
      │       │        │        │         │
      └───────┴────────┴────────┴─────────┴──▶ 0 %      certainly worse: for good, until its table is another one

What looks worse and is not certain to be holds it where it is. It never steps back but to nothing, and nothing brings
it back by itself, so that chance cannot make it flap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from weir_router.models.config import CanaryTable
from weir_router.models.outcome import End, Outcome
from weir_router.models.window import Window, least_increase, wilson

# Standard deviations. Each request is a look, and each look another chance to err: at three, and beyond a margin, none
# of a thousand simulated good canaries was rolled back in ten thousand requests of its alias.
_DEVIATIONS: Final = 3.0


class Stage(Enum):
    RAMPING = "ramping"
    # It looks worse, and is not certain to be; or it is, and the table wants it held and not taken back.
    HELD = "held"
    ROLLED_BACK = "rolled_back"
    # It has its weight, and is still watched.
    ARRIVED = "arrived"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` says what is worse; empty: nothing is."""

    reason: str = ""
    certain: bool = False


class Canary:
    """`share` is its part of the alias' traffic now, at most `final_share`. Times are monotonic seconds."""

    def __init__(self, table: CanaryTable, final_share: float):
        self.table, self.final_share = table, final_share
        self.stage, self.reason = Stage.RAMPING, ""
        self._steps = [step for step in table.steps if step < final_share] + [final_share]
        self._step = 0
        # The last step at which it was held: it is told of once for each.
        self._held_step: int | None = None
        # None: no request has come yet, and time runs from the first.
        self._step_began: float | None = None
        self._step_requests = 0
        self._own, self._baseline = Window(table.window_seconds), Window(table.window_seconds)

    @property
    def share(self) -> float:
        return 0.0 if self.stage is Stage.ROLLED_BACK else self._steps[self._step]

    def note_baseline(self, outcome: Outcome, now: float) -> bool:
        """Whether its share has changed by this, or it is held for the first time at this step."""
        self._baseline.add(outcome, now)
        return self._decide(now)

    def note(self, outcome: Outcome, now: float) -> bool:
        """As `note_baseline`, for a request of its own."""
        self._own.add(outcome, now)
        self._step_requests += outcome.end is not End.LEFT
        return self._decide(now)

    def _decide(self, now: float) -> bool:
        if self.stage is Stage.ROLLED_BACK:
            return False
        before = self.share, self._held_step
        if self._step_began is None:
            self._step_began = now
        self._own.forget(now)
        self._baseline.forget(now)
        self._follow(judge(self._own, self._baseline, self.table), now)
        return before != (self.share, self._held_step)

    def _follow(self, verdict: Verdict, now: float) -> None:
        if verdict.certain and self.table.on_worse == "rollback":
            self.stage, self.reason = Stage.ROLLED_BACK, verdict.reason
        elif verdict.reason:
            self.stage, self.reason = Stage.HELD, verdict.reason
            self._held_step, self._step_began = self._step, now  # a healthy period begins anew
        elif self._step == len(self._steps) - 1:
            self.stage, self.reason = Stage.ARRIVED, ""
        else:
            self.stage = Stage.RAMPING
            self._ramp(now)

    def _ramp(self, now: float) -> None:
        assert self._step_began is not None
        table, elapsed = self.table, now - self._step_began
        self.reason = f"at {self.share:.3g} of the traffic: {self._step_requests} of {table.min_requests} requests"
        enough = min(self._step_requests, len(self._own), len(self._baseline)) >= table.min_requests
        if enough and elapsed >= table.step_seconds:
            self._step, self._step_began, self._step_requests = self._step + 1, now, 0
            self.reason = f"at {self.share:.3g} of the traffic, after {elapsed:.0f} healthy seconds"
            if self._step == len(self._steps) - 1:
                self.stage, self.reason = Stage.ARRIVED, ""


def judge(own: Window, baseline: Window, table: CanaryTable) -> Verdict:
    """What the two windows say of the first: the first thing that is certainly worse, else the first that looks so."""
    verdicts: list[Verdict] = []
    if min(len(own), len(baseline)) >= table.min_requests:
        verdicts.append(_rate_verdict("error rate", End.FAILED, own, baseline, table.max_error_increase))
        verdicts.append(_rate_verdict("refusals", End.REFUSED, own, baseline, table.max_refusal_increase))
    # Also by those that were left: a target that hangs may have no others.
    if min(own.num_ttfts, baseline.num_ttfts) >= table.min_requests:
        verdicts.append(_ttft_verdict(own, baseline, table))
    return _worst(verdicts)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return next((verdict for verdict in verdicts if verdict.certain), None) or next(
        (verdict for verdict in verdicts if verdict.reason), Verdict()
    )


def _rate_verdict(name: str, end: End, own: Window, baseline: Window, limit: float) -> Verdict:
    mine, theirs = (own.count(end), len(own)), (baseline.count(end), len(baseline))
    if mine[0] / mine[1] - theirs[0] / theirs[1] <= limit:
        return Verdict()
    reason = f"{name} {mine[0]} of {mine[1]}, the baseline's {theirs[0]} of {theirs[1]}"
    return Verdict(reason, certain=least_increase(mine, theirs, _DEVIATIONS) > limit)


def _ttft_verdict(own: Window, baseline: Window, table: CanaryTable) -> Verdict:
    """Slower: more of its first tokens than `1 - quantile` come later than the baseline's quantile, and a bit.

    So a time becomes a rate, which is judged as the others are, whatever the times' distribution.
    """
    usual, mine = baseline.ttft_quantile(table.ttft_quantile), own.ttft_quantile(table.ttft_quantile)
    if usual is None or mine is None or mine <= usual * table.max_ttft_ratio:
        return Verdict()
    highest = baseline.ttft_quantile(table.ttft_quantile, deviations=_DEVIATIONS)
    assert highest is not None
    late = own.slower_than(highest * table.max_ttft_ratio)
    certain = wilson(late, own.num_ttfts, _DEVIATIONS)[0] > 1 - table.ttft_quantile
    name = f"TTFT at p{100 * table.ttft_quantile:g}"
    return Verdict(f"{name} {mine:.3g} s, the baseline's {usual:.3g} s", certain)
