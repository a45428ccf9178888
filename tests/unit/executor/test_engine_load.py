"""The load says what scheduler, pool and meter say."""

from __future__ import annotations

from contract.engine_contract import prompt, request
from weir_executor.engine import StepStats
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.engine_load import engine_load
from weir_executor.paged.scheduler import Scheduler, SchedulerLimits
from weir_executor.paged.sequence import LiveRequest
from weir_executor.paged.step_meter import StepMeter


def test_each_part_comes_from_who_knows_it() -> None:
    scheduler, meter = Scheduler(BlockPool(8), SchedulerLimits(1, 16, 4)), StepMeter()
    for key in range(2):
        asked = request(key, prompt(6), 5)
        scheduler.add(LiveRequest(asked, key, frozenset(), shares_blocks=False, submitted_at=0.0))
    (row,) = scheduler.schedule().scheduled
    scheduler.advance(row, [7])
    meter.note(StepStats(1, 6, 0, 0), 0.5)
    load = engine_load(scheduler, meter, 12)
    assert (load.step, load.progress, load.last_step_seconds, load.busy_seconds) == (1, 6, 0.5, 0.5)
    assert (load.running_sequences, load.waiting_requests, load.preemptions) == (1, 1, 0)
    assert (load.total_blocks, load.free_blocks, load.cached_blocks, load.held_blocks) == (8, 6, 0, 0)
    assert (load.prefill_tokens, load.decode_tokens, load.draft_tokens, load.chunk_tokens) == (6, 0, 0, 12)
    assert (load.outstanding_prefill_tokens, load.outstanding_tokens) == (6, 5 + 6 + 5)
    assert load.last_batch == StepStats(1, 6, 0, 0, seconds=0.5)
    assert load.prefill_token_seconds is not None
