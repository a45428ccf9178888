"""A compiled guide and the states of the outputs that follow it, over xgrammar's matcher."""

from __future__ import annotations

from collections.abc import Callable, Collection
from time import thread_time
from typing import Any

from weir_executor.guided.bindings import bindings
from weir_executor.guided.bitmask import Words, has, no_tokens, put
from weir_executor.guided.compile import Tokens
from weir_executor.guided.guide import Guide

# A matcher takes microseconds per token, and milliseconds for the worst of sensible schemas. An ambiguous grammar takes
# time with the square of the output's length, all of it on the step's thread; its own time, not that of a busy machine.
_SLOW_SECONDS = 0.1


class XgrammarGuide:
    """A `CompiledGuide`."""

    def __init__(self, guide: Guide, compiled: Any, tokens: Tokens, clock: Callable[[], float] = thread_time) -> None:
        self._guide, self._compiled, self.tokens, self.clock = guide, compiled, tokens, clock

    @property
    def guide(self) -> Guide:
        return self._guide

    @property
    def num_bytes(self) -> int:
        """About what it takes of memory."""
        return int(self._compiled.memory_size_bytes)

    def start(self) -> XgrammarState:
        override_stop_tokens, terminate_without_stop_token, deprecated = None, True, -1
        matcher = bindings().GrammarMatcher(
            self._compiled, override_stop_tokens, terminate_without_stop_token, deprecated
        )
        return XgrammarState(self, matcher)


class XgrammarState:
    """A `GuideState`. What may come next is found at most once per token, when it is first asked for."""

    def __init__(self, guide: XgrammarGuide, matcher: Any) -> None:
        self._guide, self._matcher = guide, matcher
        self._words = no_tokens(len(guide.tokens.token_bytes))
        self._is_filled = False
        self._is_slow = False

    @property
    def allows_end(self) -> bool:
        return bool(self._matcher.is_terminated())

    @property
    def allows_text(self) -> bool:
        return bool(self._text_words().any())

    @property
    def is_slow(self) -> bool:
        return self._is_slow

    def advance(self, token_id: int) -> bool:
        # xgrammar writes a warning for a token that is no text.
        token_bytes = self._guide.tokens.token_bytes
        if token_id >= len(token_bytes) or not token_bytes[token_id]:
            return False
        accepted = bool(self._timed(lambda: self._matcher.accept_token(token_id, False)))
        self._is_filled &= not accepted
        return accepted

    def rollback(self, num_tokens: int) -> None:
        if num_tokens:
            self._matcher.rollback(num_tokens)
            self._is_filled = False

    def allowed(self, stop_token_ids: Collection[int], *, may_end: bool) -> Words:
        words = self._text_words().copy()
        for token_id in stop_token_ids:
            put(words, token_id, present=may_end and (self.allows_end or self._ends_with(token_id)))
        return words

    def _ends_with(self, token_id: int) -> bool:
        """Whether the token is text after which an end is allowed."""
        if not has(self._text_words(), token_id):
            return False
        accepted = self._matcher.accept_token(token_id, False)
        assert accepted, "the mask allows what the matcher does not"
        ends = self.allows_end
        self._matcher.rollback(1)
        return ends

    def _text_words(self) -> Words:
        """The tokens that go on as text."""
        if not self._is_filled:
            self._timed(lambda: self._matcher.fill_next_token_bitmask(self._words, 0, False))
            self._is_filled = True
        return self._words

    def _timed(self, call: Callable[[], Any]) -> Any:
        started = self._guide.clock()
        result = call()
        self._is_slow |= self._guide.clock() - started > _SLOW_SECONDS
        return result
