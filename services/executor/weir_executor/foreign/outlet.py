"""What the engine has to say, gathered for a turn of its loop and delivered as one step. Used on the loop only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from weir_executor.engine import Deliver
from weir_executor.step_output import KvEvent, RequestEnd, StepOutput, TokenOutput

_log = logging.getLogger(__name__)


class Outlet:
    """`before_ends` is awaited before requests' ends are told: who hears of one knows what blocks it has left.

    `after` is called when a step was delivered: who sees a request gone from the load has heard its end.
    """

    def __init__(self, before_ends: Callable[[], Awaitable[None]], after: Callable[[], None]) -> None:
        self._before_ends, self._after = before_ends, after
        self.deliver: Deliver = lambda _: None
        self._outputs: list[TokenOutput] = []
        self._ended: list[RequestEnd] = []
        self._events: list[KvEvent] = []
        self._begun = False
        self._telling: asyncio.Task[None] | None = None
        self.steps = 0
        # Grows with each token and each end; an observer sees progress by it.
        self.progress = 0

    def output(self, words: TokenOutput) -> None:
        self._outputs.append(words)
        self.progress += len(words.token_ids) + (words.finish_reason is not None)
        self.soon()

    def end(self, end: RequestEnd) -> None:
        self._ended.append(end)
        self.progress += 1
        self.soon()

    def events(self, events: list[KvEvent]) -> None:
        self._events += events
        if events:
            self.soon()

    def soon(self) -> None:
        """In the next turn of the loop, with all that is said until then."""
        if not self._begun:
            self._begun = True
            asyncio.get_running_loop().call_soon(self._begin)

    def flush(self) -> None:
        """Now."""
        self._begun = False
        step = StepOutput(self._outputs, self._ended, (), self._events)
        self._outputs, self._ended, self._events = [], [], []
        if step.outputs or step.ended or step.kv_events:
            self.steps += 1
            self.deliver(step)
        self._after()

    def _begin(self) -> None:
        if self._ended:
            self._telling = asyncio.get_running_loop().create_task(self._tell_ends(), name="tell-ends")
        else:
            self.flush()

    async def _tell_ends(self) -> None:
        try:
            await self._before_ends()
        except Exception:
            _log.exception("what blocks a request has left cannot be read")
        self.flush()
