"""The engine's iteration statistics, as far as they can be had. Pure.

Statistics are told once and are gone; they are empty before the first request, and differ in form between versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weir_executor.engine import StepStats
from weir_executor.foreign.load_report import Iteration


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


def _table(stats: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = stats.get(name)
    return found if isinstance(found, Mapping) else {}


def _number(stats: Mapping[str, Any], name: str) -> float:
    """0 for what is no number that counts something."""
    found = stats.get(name)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < math.inf:
        return 0.0
    return float(found)
