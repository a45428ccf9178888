"""What steps computed and how long that took: the newest, and the sums since start. Pure."""

from __future__ import annotations

from dataclasses import replace

from weir_executor.engine import StepStats
from weir_executor.estimate import Average
from weir_executor.paged.batch import Batch, Scheduled

# Some eight full steps: what a step takes changes with what runs beside it, and not from one step to the next.
_MEMORY_TOKENS = 4096


class StepMeter:
    def __init__(self) -> None:
        self.steps, self.last_seconds = 0, 0.0
        self.last: StepStats | None = None  # of the newest step that computed anything
        self.prefill_tokens = self.decode_tokens = self.draft_tokens = 0
        self.busy_seconds = 0.0
        # Of whole steps, decodes and all: what it takes a prompt to come through as things are. By tokens, because a
        # long prompt goes through full steps, and a small step's tokens cost more each.
        self.prefill_token_seconds = Average(_MEMORY_TOKENS)

    def note(self, stats: StepStats, seconds: float) -> None:
        """A step is over. One that computed nothing counts, and is no more than that."""
        self.steps, self.last_seconds = self.steps + 1, seconds
        if not stats.sequences:
            return
        self.last = replace(stats, seconds=seconds)
        self.prefill_tokens += stats.prefill_tokens
        self.decode_tokens += stats.decode_tokens
        self.draft_tokens += stats.draft_tokens
        self.busy_seconds += seconds
        if stats.prefill_tokens:
            self.prefill_token_seconds.note(seconds / stats.prefill_tokens, stats.prefill_tokens)


def count(batch: Batch) -> StepStats:
    """Of a batch that has not run yet. A token generated before is a decode's, and so are the drafts after it."""
    decoding = [scheduled for scheduled in batch.scheduled if _decodes(scheduled)]
    decode_tokens = sum(scheduled.count for scheduled in decoding)
    return StepStats(
        sequences=len(batch.scheduled),
        prefill_tokens=batch.num_tokens - decode_tokens,
        decode_tokens=decode_tokens,
        draft_tokens=sum(len(scheduled.draft_token_ids) for scheduled in decoding),
    )


def _decodes(scheduled: Scheduled) -> bool:
    return scheduled.num_own == 1 and scheduled.first >= scheduled.sequence.num_given
