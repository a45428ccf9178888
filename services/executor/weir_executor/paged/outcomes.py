"""What a step came to → sequences that advance, requests that end, and the words for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weir_chassis.errors import WeirError
from weir_executor.paged.batch import Batch, Scheduled
from weir_executor.paged.report import Report, request_end, token_output
from weir_executor.paged.scheduler import Scheduler
from weir_executor.paged.sequence import LiveRequest, Status
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.paged.speculation.drafter import Drafter
from weir_executor.paged.worker import Draw, NotFiniteError, Result, Vector, Worker


class Outcomes:
    """Used on the step thread only."""

    def __init__(self, scheduler: Scheduler, worker: Worker, drafter: Drafter, clock: Callable[[], float]) -> None:
        self._scheduler, self._worker, self._drafter, self._clock = scheduler, worker, drafter, clock

    def take(self, batch: Batch, results: Sequence[Result], report: Report) -> None:
        now = self._clock()
        for scheduled, result in zip(batch.scheduled, results, strict=True):
            sequence = scheduled.sequence
            if sequence.status is Status.FINISHED:
                continue  # another output of its request failed in this very step
            if isinstance(result, NotFiniteError) and scheduled.draft_token_ids:
                self._retry_without_drafts(sequence)
            elif isinstance(result, WeirError):
                self._fail(sequence.live, result, report)
            elif isinstance(result, Vector):
                self._take_vector(scheduled, result, report)
            else:
                self._take_draws(scheduled, result, now, report)

    def _take_vector(self, scheduled: Scheduled, vector: Vector, report: Report) -> None:
        report.new_blocks += self._scheduler.advance(scheduled)
        scheduled.sequence.live.embedding = vector.values
        self.finish(scheduled.sequence, report)

    def _take_draws(self, scheduled: Scheduled, draws: Sequence[Draw], now: float, report: Report) -> None:
        """None of a row that did not reach its sequence's end; several of one whose drafts stood."""
        sequence = scheduled.sequence
        assert bool(draws) == scheduled.samples, scheduled
        kept = draws[: sequence.count_until_end([draw.token_id for draw in draws])]
        report.new_blocks += self._scheduler.advance(scheduled, [draw.token_id for draw in kept])
        if not kept:
            return
        self._note_drafts(scheduled, min(len(kept), len(draws) - 1))
        sequence.live.completion_tokens += len(kept)
        if sequence.live.first_token_at is None:
            sequence.live.first_token_at = now
        logprobs = [draw.logprobs for draw in kept if draw.logprobs is not None]
        output = token_output(sequence, sequence.num_generated - len(kept), logprobs)
        report.outputs.append(output)
        if sequence.hands_over:
            self._scheduler.hold_prompt(sequence)
            sequence.live.held_blocks = 0
        if sequence.hands_over or output.finish_reason is not None:
            self.finish(sequence, report)

    def _note_drafts(self, scheduled: Scheduled, num_accepted: int) -> None:
        self._drafter.observe_row(scheduled, num_accepted)
        scheduled.sequence.live.draft_tokens += len(scheduled.draft_token_ids)
        scheduled.sequence.live.accepted_draft_tokens += num_accepted

    def _retry_without_drafts(self, sequence: LiveSequence) -> None:
        """A draft that the model cannot compute is no fault of the request: had it not been guessed, all were well."""
        self._worker.clear_blocks(self._scheduler.restart(sequence))
        self._drafter.stop(sequence)

    def finish(self, sequence: LiveSequence, report: Report) -> None:
        live = sequence.live
        self._scheduler.finish(sequence)
        if not live.sequences:
            if live.held_blocks is not None:
                live.held_blocks = len(self._scheduler.held.of(live.key))
            report.ended.append(request_end(live, self._clock(), None))

    def abort(self, live: LiveRequest, report: Report) -> None:
        """All of it, and what it was to leave behind."""
        self._scheduler.held.release(live.key)
        live.held_blocks = None
        for sequence in list(live.sequences):
            self.finish(sequence, report)

    def _fail(self, live: LiveRequest, error: WeirError, report: Report) -> None:
        self._worker.clear_blocks(self._scheduler.unshared_blocks(live))
        self._scheduler.finish_all(live)
        self._scheduler.held.release(live.key)
        live.held_blocks = None
        report.ended.append(request_end(live, self._clock(), error))
