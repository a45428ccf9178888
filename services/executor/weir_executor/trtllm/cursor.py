"""What is new of one output: the engine tells all its tokens again with each step. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from weir_executor.foreign.live import News
from weir_executor.step_output import FinishReason, TokenLogprobs

# As TensorRT-LLM's own servers say it.
_LOWEST: Final = -9999.0
# By the engine's own words. A time limit is never set there, so that its `timeout` is a fault.
_REASONS: Mapping[str, FinishReason | None] = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "cancelled": FinishReason.CANCELLED,
    # Of a prompt that is handed over.
    "not_finished": None,
}


class Cursor:
    """`end_id`: the one that the engine takes for the end of a sequence. `top`: as `Sampling.top_logprobs`.

    `known`: tokens that the engine tells as its own, and that the caller has had from another.
    """

    def __init__(self, end_id: int, top: int | None, known: Sequence[int] = ()) -> None:
        self._end_id, self._top, self._known = end_id, top, list(known)
        self.seen = len(known)

    def advance(self, output: Any) -> News:
        """`output` is a CompletionOutput, which the engine will change: all that is needed is copied here.

        What it has now may be less than it had: the engine takes back what it takes for a part of a stop sequence, and
        what has been sent stays sent. Raises ValueError for an end that it has no business to tell, and for tokens that
        are not those that it was to go on after.
        """
        if self._known and list(output.token_ids[: len(self._known)]) != self._known[: len(output.token_ids)]:
            raise ValueError("the engine goes on after other tokens than those that it was given")
        token_ids = list(output.token_ids[self.seen :])
        logprobs: list[TokenLogprobs] = []
        if self._top is not None and output.logprobs:
            # Of tokens that another engine drew there may be none: the last ones are the same.
            missing = max(0, len(output.token_ids) - len(output.logprobs)) if self._known else 0
            told = output.logprobs[max(0, self.seen - missing) :]
            logprobs = [self._logprobs(*pair) for pair in zip(token_ids, told, strict=False)]
        self.seen += len(token_ids)
        reason = None
        if output.finish_reason is not None:
            if output.finish_reason not in _REASONS:
                raise ValueError(f"an output that ended with {output.finish_reason!r}")
            reason = _REASONS[output.finish_reason]
        return News(token_ids, logprobs, reason, self._stop(output, reason))

    def _stop(self, output: Any, reason: FinishReason | None) -> int | None:
        """A stop token is named; the end-of-sequence token is not, and it is the only other way to stop."""
        if reason is not FinishReason.STOP:
            return None
        return output.stop_reason if isinstance(output.stop_reason, int) else self._end_id

    def _logprobs(self, token_id: int, entry: Any) -> TokenLogprobs:
        """`{token id: Logprob}` of the drawn token and the best ones, or the drawn token's number alone."""
        if isinstance(entry, (int, float)):
            return TokenLogprobs(_clamped(entry))
        drawn = _clamped(entry[token_id].logprob)
        told = [(token_id, _clamped(each.logprob)) for token_id, each in entry.items()]
        best = sorted(told, key=lambda pair: -pair[1])[: self._top]
        return TokenLogprobs(drawn, [token_id for token_id, _ in best], [logprob for _, logprob in best])


def _clamped(logprob: float) -> float:
    """Rounding may say more than certain, and a token that is forbidden has minus infinity or none."""
    return _LOWEST if math.isnan(logprob) else max(_LOWEST, min(0.0, logprob))
