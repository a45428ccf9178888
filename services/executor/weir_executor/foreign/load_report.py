"""What the engine tells of itself, as far as it does, and our own count of what is live: the load. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weir_executor.engine import EngineLoad, StepStats
from weir_executor.estimate import Estimate
from weir_executor.foreign.live import LiveRequest


@dataclass(frozen=True, slots=True)
class Iteration:
    """The newest that was told. `steps` counts all that were told since start."""

    steps: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0
    total_blocks: int = 0
    used_blocks: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    draft_tokens: int = 0
    batch: StepStats | None = None


def load(
    iteration: Iteration,
    running: Iterable[LiveRequest],
    waiting: Iterable[LiveRequest],
    *,
    total_blocks: int,
    cached_blocks: int,
    progress: int,
    steps: int,
    chunk_tokens: int,
    prefill_token_seconds: Estimate | None,
    held_blocks: int = 0,
) -> EngineLoad:
    """`steps` is our own count, which goes on where none is told."""
    running, waiting = list(running), list(waiting)
    lives = [*running, *waiting]
    prefill = sum(live.prefill_left for live in lives)
    total = iteration.total_blocks or total_blocks
    # Told with a step, so that what the last one freed is told with the next; where nothing lives, nothing is used.
    used = max(iteration.used_blocks if lives else 0, held_blocks)
    return EngineLoad(
        step=max(steps, iteration.steps),
        waiting_requests=len(waiting),
        running_sequences=sum(live.num_in_engine for live in running),
        free_blocks=max(0, total - used),
        total_blocks=total,
        cached_blocks=min(cached_blocks, total),
        outstanding_tokens=prefill + sum(live.decode_left for live in lives),
        preemptions=0,
        last_step_seconds=iteration.seconds,
        progress=progress,
        last_batch=iteration.batch,
        prefill_tokens=iteration.prefill_tokens,
        decode_tokens=iteration.decode_tokens,
        draft_tokens=iteration.draft_tokens,
        busy_seconds=iteration.busy_seconds,
        chunk_tokens=chunk_tokens,
        outstanding_prefill_tokens=prefill,
        prefill_token_seconds=prefill_token_seconds,
        held_blocks=held_blocks,
    )
