"""A small request through whole steps: warms a worker up before anybody waits, proves it after a failed step."""

from __future__ import annotations

from weir_chassis.errors import Internal, WeirError
from weir_executor.engine import EngineInfo
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.scheduler import Scheduler, SchedulerLimits
from weir_executor.paged.sequence import LiveRequest
from weir_executor.paged.worker import Result, Vector, Worker
from weir_executor.request import GenerationRequest, Sampling

# A prefill and two decodes: both of a step's shapes, and the second time that each is used.
_PROMPT_TOKENS, _NEW_TOKENS = 8, 3


def run_self_test(pool: BlockPool, limits: SchedulerLimits, worker: Worker, info: EngineInfo) -> None:
    """Prefill and decode in one block of the pool, which is free again at the end and holds no prefix.

    A scheduler of its own shares nothing with the requests but the pool. Raises what the worker raised, or what was
    wrong with its results.
    """
    scheduler, live = Scheduler(pool, limits), _small_request(info)
    scheduler.add(live)
    try:
        while scheduler.live:
            batch = scheduler.schedule()
            for scheduled, result in zip(batch.scheduled, worker.run(batch), strict=True):
                _take(scheduler, scheduled, result, info)
    finally:
        if live.sequences:
            blocks = scheduler.unshared_blocks(live)
            scheduler.finish_all(live)
            worker.clear_blocks(blocks)


def _take(scheduler: Scheduler, scheduled: Scheduled, result: Result, info: EngineInfo) -> None:
    if isinstance(result, WeirError):
        raise result
    token_ids = () if isinstance(result, Vector) else [draw.token_id for draw in result]
    if len(token_ids) != scheduled.num_wanted or not all(0 <= token_id < info.vocab_size for token_id in token_ids):
        raise Internal(f"the self-test drew {result} from a vocabulary of {info.vocab_size}")
    scheduler.advance(scheduled, token_ids)
    if scheduled.sequence.finish_reason() is not None:
        scheduler.finish(scheduled.sequence)


def _small_request(info: EngineInfo) -> LiveRequest:
    """Of tokens that one block holds: after a failed step, its requests have given back at least that."""
    room = min(info.block_size + 1, info.max_model_len)  # the last token is drawn and never computed
    new = min(_NEW_TOKENS, room - 1)
    token_ids = [token_id % info.vocab_size for token_id in range(min(_PROMPT_TOKENS, room - new))]
    request = GenerationRequest(-1, token_ids, new, sampling=Sampling(seed=1))
    return LiveRequest(request, arrival=0, stop_token_ids=frozenset(), shares_blocks=False, submitted_at=0.0)
