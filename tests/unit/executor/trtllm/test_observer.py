"""What the engine tells by itself, in the ways in which versions tell it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from weir_executor.trtllm import observer as module
from weir_executor.trtllm.observer import Observer, what_is_told

STEP = {"iterLatencyMS": 2, "kvCacheStats": {"maxNumBlocks": 9, "usedNumBlocks": 3}}


class Told:
    """Statistics one by one, and then what `ends` says; events in batches. `waits`: the time limits that were asked."""

    def __init__(self, ends: Exception | None = None) -> None:
        self.ends, self.stats, self.events = ends, list[Any](), list[Any]()
        self.waits: list[float] = []

    async def get_stats_async(self, timeout: float) -> AsyncIterator[Any]:
        self.waits.append(timeout)
        while self.stats:
            yield self.stats.pop(0)
        if self.ends is not None:
            raise self.ends

    async def get_kv_cache_events_async(self, timeout: float) -> AsyncIterator[Any]:
        self.waits.append(timeout)
        while self.events:
            yield self.events.pop(0)
        if self.ends is not None:
            raise self.ends


@pytest.mark.parametrize("ends", [None, asyncio.QueueEmpty(), TimeoutError()])
async def test_however_it_ends_what_was_told_is_known(ends: Exception | None) -> None:
    llm = Told(ends)
    observer = Observer(llm, 4, 5, has_events=True)
    assert not await observer.read_stats()
    llm.stats += [STEP, STEP]
    assert await observer.read_stats()
    assert (observer.iteration.steps, observer.iteration.used_blocks, observer.iteration.total_blocks) == (2, 3, 9)
    assert await observer.read_events() == []
    assert set(llm.waits) == {0.0}, "nobody waits on the loop by which tokens come"


async def test_other_errors_are_not_an_end() -> None:
    with pytest.raises(KeyError):
        [each async for each in what_is_told(Told(KeyError("?")).get_stats_async(0))]


async def test_one_that_cannot_be_read_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FAILED_SECONDS", 0.0)
    llm, news = Told(RuntimeError("the other side is busy")), asyncio.Event()
    task = asyncio.create_task(Observer(llm, 4, 5, has_events=True).run(news.set, lambda _: None))
    while len(llm.waits) < 6:
        await asyncio.sleep(0.001)
    llm.ends, llm.stats = None, [STEP]
    async with asyncio.timeout(30):
        await news.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_engine_without_a_cache_is_asked_for_no_events() -> None:
    llm = Told()
    llm.events.append({"event_id": 1})
    assert await Observer(llm, 4, 5, has_events=False).read_events() == []
    assert llm.events
