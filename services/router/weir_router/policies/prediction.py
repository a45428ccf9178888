"""When a worker would give a request its first token, as far as its reports and what was routed since let us know.

    queue     prompts that are before it: ours exactly, others' as last reported, less what was worked off since
    prefill   what of its own prompt the worker does not hold

Seconds throughout. What a prompt's token takes is each worker's own measure; of one that has computed none, the mean
of the others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from weir_router.fleet.views import ExecutorView
from weir_router.policies.policy import Candidate, Demand

# Until any of them has computed a prompt: ten thousand tokens a second. Only comparisons depend on it, and alike.
_UNKNOWN_TOKEN_SECONDS: Final = 1e-4


def token_seconds(candidates: Sequence[Candidate]) -> list[float]:
    """What a token of a prompt takes each of them."""
    measured = [_measured(candidate.executor) for candidate in candidates]
    known = [seconds for seconds in measured if seconds]
    usual = sum(known) / len(known) if known else _UNKNOWN_TOKEN_SECONDS
    return [seconds or usual for seconds in measured]


def queue_seconds(executor: ExecutorView, seconds: float) -> float:
    """Until the prompts that are before it are computed, at so many seconds a token."""
    ours = executor.routed_prefill_tokens * seconds
    if not executor.foreign_prefill_tokens:
        return ours
    foreign, load = executor.foreign_prefill_tokens * seconds, executor.load
    return ours + (foreign if load is None else max(0.0, foreign - load.age_seconds))


def uncached_tokens(candidate: Candidate, demand: Demand) -> int:
    """Of the prompt: at least its last token is always computed."""
    uncached = demand.prompt_tokens - demand.cached_tokens.get(candidate.executor.address, 0)
    return uncached if uncached > 0 else 1


def waits_for_blocks(candidate: Candidate, demand: Demand) -> bool:
    """Whether requests wait there, as last reported, and this one's prompt would not find the blocks that it needs."""
    load = candidate.executor.load
    if load is None or not load.waiting_requests or not load.total_blocks:
        return False
    return load.free_blocks * candidate.model.block_size < uncached_tokens(candidate, demand)


def first_token_seconds(candidate: Candidate, demand: Demand, seconds: float) -> float:
    """From its arrival at the worker, which takes so many seconds for a prompt's token."""
    return queue_seconds(candidate.executor, seconds) + uncached_tokens(candidate, demand) * seconds


def _measured(executor: ExecutorView) -> float | None:
    return executor.load.prefill_token_seconds if executor.load else None
