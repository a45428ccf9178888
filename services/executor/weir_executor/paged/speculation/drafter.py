"""Gives a scheduled step its drafts: decides how many, has them guessed, and learns from what became of them.

    schedule → [ which rows → how many pay → room in blocks → guess ] → run → which stood

Drafts take what the scheduler has left over: tokens of the step's budget, and blocks that nobody waits for. They never
cost anybody a block, a place in the batch or a preemption.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

from weir_executor.paged.batch import Batch, Scheduled
from weir_executor.paged.guides import allowed_drafts
from weir_executor.paged.scheduler import Scheduler
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.paged.speculation.controller import Acceptance, Controller, CostMeter
from weir_executor.paged.speculation.ngram import NgramProposer
from weir_executor.paged.speculation.proposer import Proposer, Wish
from weir_executor.request import SpeculationMode

_log = logging.getLogger(__name__)
# What sampling.proto allows a request to ask for: beyond it, drafts rarely stand that far.
MAX_DRAFT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """What requests get that ask for nothing else."""

    mode: SpeculationMode = SpeculationMode.OFF
    max_draft_tokens: int = 5  # per step
    adaptive: bool = True  # False: always as many as are allowed

    def __post_init__(self) -> None:
        assert 1 <= self.max_draft_tokens <= MAX_DRAFT_TOKENS, self


class Drafter:
    """Owned by the step loop, and called on its thread only."""

    def __init__(self, options: SpeculationOptions | None = None, draft_model: Proposer | None = None) -> None:
        self._options = options or SpeculationOptions()
        self._proposers: dict[SpeculationMode, Proposer] = {SpeculationMode.NGRAM: NgramProposer()}
        if draft_model is not None:
            self._proposers[SpeculationMode.DRAFT_MODEL] = draft_model
        assert self._options.mode is SpeculationMode.OFF or self._options.mode in self._proposers, self._options
        self._controllers = {mode: Controller() for mode in self._proposers}
        self._overall = {mode: Acceptance() for mode in self._proposers}
        self._meter = CostMeter()
        self._acceptances: WeakKeyDictionary[LiveSequence, Acceptance] = WeakKeyDictionary()
        self._without: WeakSet[LiveSequence] = WeakSet()

    @property
    def modes(self) -> tuple[SpeculationMode, ...]:
        """Those that a request may ask for, besides none."""
        return tuple(self._proposers)

    def add_drafts(self, batch: Batch, scheduler: Scheduler) -> None:
        """Extend the batch's rows by drafts, where that pays."""
        for mode, proposer in self._proposers.items():
            proposer.note(batch)
            rows = [row for row in batch.scheduled if self._takes_drafts(row, mode)]
            if rows:
                self._add(batch, rows, mode, proposer, scheduler)

    def observe_step(self, num_tokens: int, seconds: float) -> None:
        self._meter.observe(num_tokens, seconds)

    def observe_row(self, row: Scheduled, num_accepted: int) -> None:
        mode, num_drafts = self._mode(row.sequence), len(row.draft_token_ids)
        if mode is not SpeculationMode.OFF:
            self._acceptance(row.sequence).observe(num_drafts, num_accepted)
            if num_drafts:
                self._overall[mode].observe(num_drafts, num_accepted)

    def stop(self, sequence: LiveSequence) -> None:
        """No more drafts for this one."""
        self._without.add(sequence)

    def _add(
        self, batch: Batch, rows: Sequence[Scheduled], mode: SpeculationMode, proposer: Proposer, scheduler: Scheduler
    ) -> None:
        wishes: list[Wish] = []
        for row, length in zip(rows, self._lengths(rows, mode, proposer, batch.num_tokens), strict=True):
            left = scheduler.limits.max_batched_tokens - batch.num_tokens - sum(wish.most for wish in wishes)
            if room := scheduler.make_room_for_drafts(row.sequence, min(length, left)):
                wishes.append(Wish(row, room))
        for wish, drafts in zip(wishes, self._guesses(mode, proposer, wishes), strict=True):
            assert len(drafts) <= wish.most, (len(drafts), wish)
            batch.add_drafts(wish.row, tuple(allowed_drafts(wish.row.sequence, drafts)))

    def _lengths(
        self, rows: Sequence[Scheduled], mode: SpeculationMode, proposer: Proposer, num_tokens: int
    ) -> Sequence[int]:
        limits = [self._limit(row.sequence) for row in rows]
        if not self._options.adaptive:
            return limits
        if self._controllers[mode].rests():
            return [0] * len(limits)
        rates = [self._acceptance(row.sequence).rate for row in rows]
        costs = self._meter.costs(proposer.seconds_per_draft())
        return self._controllers[mode].lengths(rates, limits, num_tokens, costs)

    def _guesses(self, mode: SpeculationMode, proposer: Proposer, wishes: Sequence[Wish]) -> Sequence[Sequence[int]]:
        """A proposer that fails is asked no more: nothing but speed depends on it."""
        try:
            return proposer.propose(wishes) if wishes else []
        except Exception:
            _log.exception("speculation by %s failed and is off from now on", mode.value)
            self._proposers = {other: kept for other, kept in self._proposers.items() if other is not mode}
            return [()] * len(wishes)

    def _takes_drafts(self, row: Scheduled, mode: SpeculationMode) -> bool:
        return row.samples and row.count == 1 and self._mode(row.sequence) is mode

    def _mode(self, sequence: LiveSequence) -> SpeculationMode:
        if sequence in self._without:
            return SpeculationMode.OFF
        return sequence.live.request.speculation or self._options.mode

    def _limit(self, sequence: LiveSequence) -> int:
        """One token comes of itself, so that many fewer drafts than tokens are left can be of use."""
        asked = sequence.live.request.max_draft_tokens or self._options.max_draft_tokens
        return min(asked, sequence.live.request.max_tokens - sequence.num_generated - 1)

    def _acceptance(self, sequence: LiveSequence) -> Acceptance:
        if (known := self._acceptances.get(sequence)) is not None:
            return known
        return self._acceptances.setdefault(sequence, Acceptance(self._overall[self._mode(sequence)].rate))
