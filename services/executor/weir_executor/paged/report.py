"""What a step has to say about its requests, in the words of the waist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from weir_executor.paged.batch import NewBlock
from weir_executor.paged.sequence import LiveRequest
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.step_output import RequestEnd, TokenLogprobs, TokenOutput


@dataclass(slots=True)
class Report:
    """A step's words, as they come together."""

    outputs: list[TokenOutput] = field(default_factory=list)
    ended: list[RequestEnd] = field(default_factory=list)
    new_blocks: list[NewBlock] = field(default_factory=list)


def token_output(sequence: LiveSequence, first_token_index: int, logprobs: Sequence[TokenLogprobs] = ()) -> TokenOutput:
    """The sequence's tokens from `first_token_index` on, and how it ended, if it did."""
    reason = sequence.finish_reason()
    return TokenOutput(
        key=sequence.live.key,
        output_index=sequence.output_index,
        first_token_index=first_token_index,
        token_ids=tuple(sequence.token_ids[sequence.num_prompt + first_token_index :]),
        logprobs=logprobs,
        finish_reason=reason,
        stop_token_id=sequence.stop_token_id,
    )


def request_end(live: LiveRequest, now: float, error: Exception | None) -> RequestEnd:
    """The last word. A stage that the request never reached took no time."""
    scheduled_at = now if live.scheduled_at is None else live.scheduled_at
    first_token_at = now if live.first_token_at is None else live.first_token_at
    return RequestEnd(
        key=live.key,
        prompt_tokens=len(live.request.token_ids),
        cached_prompt_tokens=live.cached_prompt_tokens,
        loaded_prompt_tokens=live.loaded_prompt_tokens,
        completion_tokens=live.completion_tokens,
        queue_seconds=scheduled_at - live.submitted_at,
        prefill_seconds=first_token_at - scheduled_at,
        decode_seconds=now - first_token_at,
        preemptions=live.preemptions,
        draft_tokens=live.draft_tokens,
        accepted_draft_tokens=live.accepted_draft_tokens,
        error=error,
        embedding=live.embedding,
        held_blocks=live.held_blocks,
    )
