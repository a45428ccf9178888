"""One request as the engine sees it: an engine request for each of its outputs, and what has come of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from weir_executor.engine import RequestState, WaitingReason
from weir_executor.request import GenerationRequest
from weir_executor.step_output import FinishReason, RequestEnd, TokenLogprobs, TokenOutput


@dataclass(frozen=True, slots=True)
class News:
    """New tokens, and how it ended, if it has."""

    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs]
    finish_reason: FinishReason | None
    stop_token_id: int | None


@dataclass(frozen=True, slots=True)
class Left:
    """How a request's prompt came, and where it went: `blocks` and `state` are those of `RequestEnd`."""

    blocks: int | None = None
    state: bytes = b""
    loaded_tokens: int = 0  # of its prompt, from another engine or the store


NOTHING_LEFT = Left()


class Cursor(Protocol):
    """Where one output stands in what the engine tells of it."""

    def advance(self, told: Any, /) -> News: ...


@dataclass(slots=True)
class LiveOutput:
    """`num_tokens` counts those that were resumed. `over`: the caller hears no more of it."""

    index: int
    cursor: Cursor
    num_tokens: int
    over: bool = False
    # The engine's, from when it has it until it has said its last word.
    result: Any = None
    # The backend's own notes on what it has asked of the engine.
    asked: Any = None
    # What is left for another engine to go on with, of one that is handed off and not over by its first tokens.
    left: Any = None

    def take(self, key: int, news: News) -> TokenOutput | None:
        """What the caller is to hear; None: nothing is new. Raises nothing for an end that was not asked for."""
        if self.over or not (news.token_ids or news.finish_reason):
            return None
        reason = news.finish_reason
        first = self.num_tokens
        self.num_tokens += len(news.token_ids)
        self.over = reason is not None
        stop = news.stop_token_id
        return TokenOutput(key, self.index, first, news.token_ids, news.logprobs, reason, stop)


@dataclass(eq=False, slots=True)
class LiveRequest:
    """Times are monotonic seconds."""

    request: GenerationRequest
    outputs: list[LiveOutput]
    submitted_at: float
    begun_at: float | None = None
    first_token_at: float | None = None
    cached_tokens: int | None = None
    error: Exception | None = None
    # By output index, what the backend goes on by after another engine that has computed the prompt.
    handed: Mapping[int, Any] = field(default_factory=dict)
    fetched: bool = False  # its prompt's blocks have come from there
    salt: str = ""  # under which its outputs find one another's blocks, where the engine has such a thing
    withdrawn: bool = False  # nobody wants any more of it
    # Of the prompt, begin and end of what was staged for the engine to load.
    staged_tokens: tuple[int, int] = (0, 0)

    @property
    def key(self) -> int:
        return self.request.key

    @property
    def done(self) -> bool:
        """Nobody waits for more, and the engine has said its last word on all of it."""
        return all(output.over and output.result is None for output in self.outputs)

    @property
    def num_wanted(self) -> int:
        """Outputs that the engine is to draw."""
        return sum(not output.over for output in self.outputs)

    @property
    def num_in_engine(self) -> int:
        """Until the last word on each, and before the first where one output goes ahead of the others."""
        begun = self.begun_at is not None
        return sum(output.result is not None or (begun and not output.over) for output in self.outputs)

    @property
    def completion_tokens(self) -> int:
        """Over all outputs, resumed ones not counted."""
        resumed = sum(len(token_ids) for token_ids in self.request.resumed.values())
        return sum(output.num_tokens for output in self.outputs) - resumed

    @property
    def staged_hit_tokens(self) -> int:
        """Of the prompt, from the store: what the engine found beyond its own blocks. It tells both as one."""
        begin, end = self.staged_tokens
        return max(0, min(self._cached_tokens, end) - begin)

    @property
    def _cached_tokens(self) -> int:
        return min(self.cached_tokens or 0, len(self.request.token_ids))

    @property
    def prefill_left(self) -> int:
        """Prompt tokens still to be computed, as far as anybody can tell."""
        return 0 if self.first_token_at is not None or self.handed else len(self.request.token_ids)

    @property
    def decode_left(self) -> int:
        """Tokens still to be generated, at most."""
        if self.request.hand_off:
            return self.num_wanted
        return sum(self.request.max_tokens - output.num_tokens for output in self.outputs if not output.over)

    @property
    def goes_on(self) -> bool:
        """At another engine: it hands off, and not all of its outputs are over."""
        return not self.withdrawn and self.error is None and any(output.left is not None for output in self.outputs)

    def stop(self, output_index: int | None) -> Sequence[LiveOutput]:
        """The caller wants no more of it, or of this output. Those that the engine has are to be aborted there."""
        wanted = [o for o in self.outputs if output_index is None or o.index == output_index]
        self.withdrawn |= output_index is None
        for output in wanted:
            output.over = True
        return [output for output in wanted if output.result is not None]

    def end(self, now: float, left: Left) -> RequestEnd:
        begun = now if self.begun_at is None else self.begun_at
        first = now if self.first_token_at is None else self.first_token_at
        return RequestEnd(
            key=self.key,
            prompt_tokens=len(self.request.token_ids),
            # Of what was fetched, an engine may say that it had it all the time.
            cached_prompt_tokens=0 if self.fetched else self._cached_tokens - left.loaded_tokens,
            loaded_prompt_tokens=left.loaded_tokens,
            completion_tokens=self.completion_tokens,
            queue_seconds=begun - self.submitted_at,
            prefill_seconds=max(0.0, first - begun),
            decode_seconds=max(0.0, now - first),
            error=self.error,
            held_blocks=left.blocks,
            handed_state=left.state,
        )

    def state(self, now: float, waiting: bool, block_size: int) -> RequestState:
        tokens = len(self.request.token_ids) + max((output.num_tokens for output in self.outputs), default=0)
        computed = 0 if self.first_token_at is None else tokens
        return RequestState(
            key=self.key,
            tenant=self.request.tenant,
            priority=self.request.priority,
            running_sequences=self.num_in_engine,
            waiting_sequences=self.num_wanted if waiting else 0,
            waiting_reason=WaitingReason.NO_SLOT if waiting else None,
            age_seconds=now - self.submitted_at,
            prompt_tokens=len(self.request.token_ids),
            computed_tokens=computed,
            completion_tokens=self.completion_tokens,
            blocks=-(-computed // block_size),
            preemptions=0,
        )


def begin(request: GenerationRequest, make_cursor: Callable[[int], Cursor], now: float) -> LiveRequest:
    """`make_cursor`: of an output's index."""
    outputs = [LiveOutput(index, make_cursor(index), len(request.resumed.get(index, ()))) for index in range(request.n)]
    return LiveRequest(request, outputs, now)


def over_at_once(live: LiveRequest, stop_token_ids: frozenset[int]) -> list[TokenOutput]:
    """The last words on outputs that were over when they were resumed.

    `stop_token_ids`: all that end one, the end-of-sequence ones among them unless they are ignored.
    """
    words = []
    for output in live.outputs:
        resumed = live.request.resumed.get(output.index, ())
        reason, stop = None, None
        if resumed and resumed[-1] in stop_token_ids and len(resumed) > live.request.min_tokens:
            reason, stop = FinishReason.STOP, resumed[-1]
        elif len(resumed) >= live.request.max_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            output.over = True
            words.append(TokenOutput(live.key, output.index, len(resumed), (), (), reason, stop))
    return words
