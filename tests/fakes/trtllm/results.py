"""What the fake LLM answers with: one object for each request, changed with every step, as the real one does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any


class RequestError(RuntimeError):
    """`tensorrt_llm.executor.utils.RequestError`."""


class EngineDeadError(RuntimeError):
    """`tensorrt_llm.executor.utils.EngineDeadError`, of newer versions."""


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    prompt_logprobs: Any = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    generation_logits: Any = None
    disaggregated_params: Any = None


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()


class RequestOutput:
    """`async for` yields this very object once a step, until it is finished; `await` gives it at its end."""

    def __init__(self, request_id: int, prompt_token_ids: list[int], loop: asyncio.AbstractEventLoop) -> None:
        """`on_abort` is what the engine makes of an abort beyond noting it."""
        self.request_id, self.prompt_token_ids = request_id, prompt_token_ids
        self.outputs = [CompletionOutput()]
        self.finished = False
        self.cached_tokens = 0
        self.error: Exception | None = None
        self.aborted = False
        self.on_abort: Callable[[], None] = lambda: None
        self._told, self._read, self._is_left = 0, 0, False
        self._before: Callable[[], None] | None = None
        self._loop, self._steps = loop, asyncio.Queue[Exception | Callable[[], None]]()

    def abort(self) -> None:
        """A message to the engine: its answer comes with some later step."""
        self.aborted = True
        self.on_abort()

    def leave(self) -> None:
        """Whoever read it reads no more; the engine is not told. (The fake's own: the real one waits for no reader.)"""
        self._is_left = True

    def tell(self, step: Exception | Callable[[], None]) -> None:
        """From the engine's thread: an error, or what is to change when it is read."""
        self._told += 1
        if self._before is not None and not isinstance(step, Exception):
            step, self._before = partial(_both, self._before, step), None
        with suppress(RuntimeError):  # who asked has gone
            self._loop.call_soon_threadsafe(self._steps.put_nowait, step)

    def tell_with_next(self, step: Callable[[], None]) -> None:
        """Read together with what is told next."""
        self._before = step if self._before is None else partial(_both, self._before, step)

    @property
    def is_read(self) -> bool:
        """Whether all that was told has been."""
        return self._read == self._told or self._is_left or self._loop.is_closed()

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished and self._steps.empty():
            raise StopAsyncIteration
        step = await self._steps.get()
        self._read += 1
        if isinstance(step, Exception):
            raise step
        step()
        return self

    def __await__(self) -> Any:
        return self._whole().__await__()

    async def _whole(self) -> RequestOutput:
        async for _ in self:
            pass
        return self
