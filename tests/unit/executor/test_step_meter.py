"""What counts as prefill, decode and draft."""

from __future__ import annotations

from contract.engine_contract import prompt, request
from weir_executor.engine import StepStats
from weir_executor.paged.batch import Batch, Scheduled
from weir_executor.paged.sequence import LiveRequest, Sequence, new_sequences
from weir_executor.paged.step_meter import StepMeter, count


def _sequence(generated: int) -> Sequence:
    live = LiveRequest(request(0, prompt(10)), 1, frozenset(), shares_blocks=False, submitted_at=0.0)
    (sequence,) = new_sequences(live, 4)
    sequence.token_ids += [7] * generated
    return sequence


def _batch(*scheduled: Scheduled) -> Batch:
    return Batch(list(scheduled), num_tokens=sum(one.count for one in scheduled))


def test_generated_tokens_are_decodes_and_everything_else_is_prefill() -> None:
    batch = _batch(
        Scheduled(_sequence(3), first=12, count=1),
        Scheduled(_sequence(3), first=12, count=4, draft_token_ids=(5, 5, 5)),
        Scheduled(_sequence(0), first=9, count=1),  # a prompt's last token, alone in its chunk
        Scheduled(_sequence(3), first=4, count=9),  # after a preemption: computed again
    )
    assert count(batch) == StepStats(sequences=4, prefill_tokens=10, decode_tokens=5, draft_tokens=3)


def test_sums_and_the_newest() -> None:
    meter = StepMeter()
    meter.note(StepStats(2, 10, 1, 0), 0.5)
    meter.note(StepStats(3, 0, 7, 4), 0.25)
    assert meter.last == StepStats(3, 0, 7, 4, seconds=0.25)
    assert (meter.prefill_tokens, meter.decode_tokens, meter.draft_tokens, meter.busy_seconds) == (10, 8, 4, 0.75)


def test_a_step_that_computed_nothing_is_counted_and_no_news() -> None:
    meter = StepMeter()
    meter.note(StepStats(2, 10, 1, 0), 0.5)
    meter.note(count(_batch()), 0.25)
    assert (meter.steps, meter.last_seconds, meter.busy_seconds) == (2, 0.25, 0.5)
    assert meter.last == StepStats(2, 10, 1, 0, seconds=0.5)


def test_what_a_prompts_token_takes_is_learned_from_the_steps_that_prefill() -> None:
    meter = StepMeter()
    assert meter.prefill_token_seconds.estimate is None
    meter.note(StepStats(32, 0, 32, 0), 9.0)
    assert meter.prefill_token_seconds.estimate is None
    for _ in range(100):
        meter.note(StepStats(1, 512, 0, 0), 0.512)
    meter.note(StepStats(1, 8, 0, 0), 0.08)  # ten times as much for each, and few of them
    learned = meter.prefill_token_seconds.estimate
    assert learned is not None
    assert 0.001 < learned.mean < 0.00105
