"""The load after a step, from those who know a part of it each. Pure."""

from __future__ import annotations

from weir_executor.engine import EngineLoad
from weir_executor.paged.scheduler import Scheduler
from weir_executor.paged.step_meter import StepMeter


def engine_load(scheduler: Scheduler, meter: StepMeter, chunk_tokens: int) -> EngineLoad:
    pool = scheduler.pool
    return EngineLoad(
        step=meter.steps,
        waiting_requests=scheduler.num_waiting_requests,
        running_sequences=scheduler.num_running,
        free_blocks=pool.num_free,
        total_blocks=pool.num_blocks,
        cached_blocks=pool.num_cached,
        outstanding_tokens=scheduler.outstanding_tokens,
        preemptions=scheduler.preemptions,
        progress=scheduler.progress,
        last_step_seconds=meter.last_seconds,
        last_batch=meter.last,
        prefill_tokens=meter.prefill_tokens,
        decode_tokens=meter.decode_tokens,
        draft_tokens=meter.draft_tokens,
        busy_seconds=meter.busy_seconds,
        chunk_tokens=chunk_tokens,
        outstanding_prefill_tokens=scheduler.outstanding_prefill_tokens,
        prefill_token_seconds=meter.prefill_token_seconds.estimate,
        held_blocks=scheduler.held.num_blocks,
    )
