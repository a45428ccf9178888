"""The engine's iteration statistics, as far as they can be had, and our own count of what is live: the load. Pure.

Statistics are told once and are gone; they are empty before the first request, and differ in form between versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from weir_executor.engine import EngineLoad, StepStats
from weir_executor.estimate import Estimate
from weir_executor.trtllm.live import LiveRequest


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


def add(known: Iteration, told: str | Mapping[str, Any]) -> Iteration:
    """What is known after one more item, which may lack anything, and be text or a dict."""
    try:
        stats = json.loads(told) if isinstance(told, str) else told
    except ValueError:
        return known
    if not isinstance(stats, Mapping):
        return known
    cache, batch = _table(stats, "kvCacheStats"), _table(stats, "inflightBatchingStats")
    seconds = _number(stats, "iterLatencyMS") / 1000
    prefill, generating = int(_number(batch, "numCtxTokens")), int(_number(batch, "numGenRequests"))
    drafts = int(_number(_table(stats, "specDecodingStats"), "numDraftTokens"))
    sequences = int(_number(batch, "numScheduledRequests"))
    return replace(
        known,
        steps=known.steps + 1,
        seconds=seconds,
        busy_seconds=known.busy_seconds + seconds,
        total_blocks=int(_number(cache, "maxNumBlocks")) or known.total_blocks,
        used_blocks=int(_number(cache, "usedNumBlocks")),
        prefill_tokens=known.prefill_tokens + prefill,
        decode_tokens=known.decode_tokens + generating + drafts,
        draft_tokens=known.draft_tokens + drafts,
        batch=StepStats(sequences, prefill, generating + drafts, drafts, seconds) if sequences else known.batch,
    )


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
) -> EngineLoad:
    """`steps` is our own count, which goes on where none is told."""
    running, waiting = list(running), list(waiting)
    lives = [*running, *waiting]
    prefill = sum(live.prefill_left for live in lives)
    total = iteration.total_blocks or total_blocks
    # Told with a step, so that what the last one freed is told with the next; where nothing lives, nothing is used.
    used = iteration.used_blocks if lives else 0
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
    )


def _table(stats: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = stats.get(name)
    return found if isinstance(found, Mapping) else {}


def _number(stats: Mapping[str, Any], name: str) -> float:
    """0 for what is no number that counts something."""
    found = stats.get(name)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < math.inf:
        return 0.0
    return float(found)
