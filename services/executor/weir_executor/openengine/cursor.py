"""What the server says of one output → what is new of it. Pure.

It is held to what was asked: servers differ in which tokens they take for an end, whether they emit it, and whether
they keep to a limit. So an output ends here with its first stop token, and is never longer than was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weir.openengine.v1 import openengine_pb2 as pb
from weir_executor.foreign.live import News
from weir_executor.step_output import FinishReason, TokenLogprobs

_REASONS: Mapping[pb.FinishReason.ValueType, FinishReason] = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}
_NOTHING = News((), (), None, None)


class BadAnswerError(Exception):
    """What no server of this contract and this model says."""


class Cursor:
    """`resumed`: tokens that were emitted before. `stop_token_ids`: all that end it. `top`: as `Sampling.top_logprobs`.

    `over`: nothing more is to be heard; a server that goes on all the same has not noticed.
    """

    def __init__(
        self,
        *,
        stop_token_ids: frozenset[int],
        min_tokens: int,
        max_tokens: int,
        resumed: int,
        top: int | None,
        vocab_size: int,
    ) -> None:
        self._stops, self._min_tokens, self._max_tokens = stop_token_ids, min_tokens, max_tokens
        self._count, self._top, self._vocab_size = resumed, top, vocab_size
        self._last: int | None = None
        self.over = False

    def advance(self, told: pb.GenerateResponse) -> News:
        """Raises BadAnswerError."""
        if self.over:
            return _NOTHING
        match told.WhichOneof("event"):
            case "token":
                _check_index(told.token.output_index)
                return self._tokens(told.token.tokens)
            case "finished":
                _check_index(told.finished.output_index)
                return self._finish(told.finished)
        return _NOTHING

    def _tokens(self, tokens: Sequence[pb.TokenInfo]) -> News:
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        reason, stop = None, None
        for token in tokens:
            token_ids.append(self._checked(token.token_id))
            if self._top is not None:
                logprobs.append(_logprobs(token, self._top))
            self._count += 1
            if token.token_id in self._stops and self._count > self._min_tokens:
                reason, stop = FinishReason.STOP, token.token_id
            elif self._count >= self._max_tokens:
                reason = FinishReason.LENGTH
            if reason is not None:
                self.over = True
                break
        self._last = token_ids[-1] if token_ids else self._last
        return News(token_ids, logprobs, reason, stop)

    def _finish(self, finished: pb.GenerationFinished) -> News:
        """A stop token that the server keeps to itself is emitted here, but for one whose log-probability is wanted.

        One that ends an output there and not here has been emitted, if it is the last.
        """
        self.over = True
        reason = _REASONS.get(finished.reason)
        if reason is None:
            raise BadAnswerError("an output that ended for no reason that the contract knows")
        kind = finished.stop_match.WhichOneof("match")
        if reason is not FinishReason.STOP or kind not in ("stop_token_id", "eos_token_id"):
            return News((), (), reason, None)
        stop = self._checked(int(getattr(finished.stop_match, kind)))
        is_new = self._top is None and stop != self._last
        return News((stop,) if is_new else (), (), reason, stop)

    def _checked(self, token_id: int) -> int:
        if token_id >= self._vocab_size:
            raise BadAnswerError(f"token id {token_id} is outside the vocabulary of {self._vocab_size}")
        return token_id


def _check_index(output_index: int) -> None:
    """Each output is a request of its own, and so the only one of it."""
    if output_index:
        raise BadAnswerError(f"of output {output_index}, where one was asked for")


def _logprobs(token: pb.TokenInfo, top: int) -> TokenLogprobs:
    if not token.HasField("logprob") or len(token.candidates) < top:
        raise BadAnswerError(f"a token with {len(token.candidates)} candidates of {top}, or without a log-probability")
    best = sorted(token.candidates, key=lambda each: -each.logprob)[:top]
    return TokenLogprobs(
        min(0.0, token.logprob), [each.token_id for each in best], [min(0.0, each.logprob) for each in best]
    )
