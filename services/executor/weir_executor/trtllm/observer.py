"""What the engine tells by itself: statistics of its iterations, and events of its blocks. Used on the loop only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Final

from weir_executor.foreign.load_report import Iteration
from weir_executor.step_output import KvEvent
from weir_executor.trtllm import stats
from weir_executor.trtllm.kv_events import EventTranslator

_log = logging.getLogger(__name__)
# Between two looks: either is told once a step at most.
_LOOK_SECONDS: Final = 0.01
# After one that failed, so that a version that cannot be read fills no log.
_FAILED_SECONDS: Final = 5.0


class Observer:
    """`iteration` is the newest that was told, `translator` knows which blocks the engine holds."""

    def __init__(self, llm: Any, block_size: int, num_blocks: int, *, has_events: bool) -> None:
        self._llm, self._has_events = llm, has_events
        self.iteration, self.translator = Iteration(total_blocks=num_blocks), EventTranslator(block_size)
        self._reading = asyncio.Lock()  # events are told once, and their order counts

    async def run(self, on_stats: Callable[[], None], on_events: Callable[[list[KvEvent]], None]) -> None:
        """For as long as the engine lives."""

        async def look_at_stats() -> None:
            if await self.read_stats():
                on_stats()

        async def look_at_events() -> None:
            on_events(await self.read_events())

        await asyncio.gather(_again(look_at_stats), _again(look_at_events))

    async def read_stats(self) -> bool:
        """Whether there is anything new."""
        before = self.iteration
        async for told in what_is_told(self._llm.get_stats_async(timeout=0.0)):
            self.iteration = stats.add(self.iteration, told)
        return self.iteration is not before

    async def read_events(self) -> list[KvEvent]:
        """Ours, of all that the engine has told since the last time."""
        events: list[KvEvent] = []
        if not self._has_events:
            return events
        async with self._reading:
            async for event in what_is_told(self._llm.get_kv_cache_events_async(timeout=0.0)):
                events += self.translator.translate(event)
        return events


async def what_is_told(items: AsyncIterable[Any]) -> AsyncIterator[Any]:
    """To the last that is there: versions end there, or raise that there is nothing, or that time is over."""
    try:
        async for item in items:
            yield item
    except (asyncio.QueueEmpty, TimeoutError):
        return


async def _again(look: Callable[[], Awaitable[None]]) -> None:
    """Until it is cancelled; a look that fails is not the engine's end, and the next may see more."""
    while True:
        try:
            await look()
        except Exception:
            _log.exception("%s: the engine cannot be read; requests go on without", look.__name__)
            await asyncio.sleep(_FAILED_SECONDS)
        await asyncio.sleep(_LOOK_SECONDS)
