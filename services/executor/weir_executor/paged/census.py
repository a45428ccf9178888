"""What each live request does now, or waits for."""

from __future__ import annotations

from weir_executor.engine import RequestState, WaitingReason
from weir_executor.paged.scheduler import Scheduler
from weir_executor.paged.sequence import LiveRequest, Status


def request_state(live: LiveRequest, scheduler: Scheduler, now: float) -> RequestState:
    """Safe to call from any thread, even while the step thread hangs: it reads numbers that are whole by themselves,
    though perhaps not all of the same step."""
    sequences = list(live.sequences)
    running = [s for s in sequences if s.status is Status.RUNNING]
    waiting = [s for s in sequences if s.status is Status.WAITING]
    known = live.key in scheduler.live  # else it is on its way to the first step
    reason = scheduler.why_waiting(waiting[0]) if waiting else (None if known else WaitingReason.NEW)
    return RequestState(
        key=live.key,
        tenant=live.request.tenant,
        priority=live.request.priority,
        running_sequences=len(running),
        waiting_sequences=len(waiting) if known else live.request.n,
        waiting_reason=reason,
        age_seconds=now - live.submitted_at,
        prompt_tokens=len(live.request.token_ids),
        computed_tokens=max((s.num_computed for s in sequences), default=0),
        completion_tokens=live.completion_tokens,
        blocks=len({block_id for s in running for block_id in list(s.blocks)}),
        preemptions=live.preemptions,
    )
