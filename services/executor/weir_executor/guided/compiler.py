"""Guides compiled once, however many requests name them, and never on the step's thread.

compile(guide) ─▶ known? ─▶ under way? ─▶ CompilePool ─▶ read what it made ─▶ does it allow anything? ─▶ known
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from weir_chassis.errors import InvalidArgument, Overloaded
from weir_executor.guided.bindings import bindings
from weir_executor.guided.compile import GuideError, Tokens
from weir_executor.guided.compile_pool import CompilePool, CompileProcess
from weir_executor.guided.compile_process import CompileLimits
from weir_executor.guided.guide import Guide
from weir_executor.guided.state import XgrammarGuide
from weir_executor.guided.vocabulary import read_token_bytes

# One guide that takes long leaves a process for the others; more would take the cores that compute.
_PROCESSES = 2
# Beyond this the last in line would wait for minutes, should each take its full time.
_MAX_UNDER_WAY = 64


@dataclass(frozen=True, slots=True)
class GuideLimits:
    compile: CompileLimits
    cache_bytes: int  # of compiled guides that are kept


class GuideCompiler:
    """Used from one event loop."""

    def __init__(self, tokens: Tokens, pool: CompilePool, cache_bytes: int) -> None:
        self._tokens, self._pool = tokens, pool
        self._cache = _GuideCache(cache_bytes)
        self._under_way: dict[Guide, asyncio.Task[XgrammarGuide]] = {}

    def known(self, guide: Guide) -> XgrammarGuide | None:
        """The compiled guide, if it need not be compiled."""
        return self._cache.get(guide)

    async def compile(self, guide: Guide) -> XgrammarGuide:
        """Raises InvalidArgument naming the field and what is wrong with it, Overloaded when too many are under way."""
        if (known := self.known(guide)) is not None:
            return known
        if guide not in self._under_way:
            self._start(guide)
        # Whoever leaves does not take it from those who stay, or come next.
        return await asyncio.shield(self._under_way[guide])

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close()

    def _start(self, guide: Guide) -> None:
        if len(self._under_way) >= _MAX_UNDER_WAY:
            raise Overloaded(f"{_MAX_UNDER_WAY} guides are being compiled already")
        task = asyncio.create_task(self._compile(guide), name="compile-guide")
        self._under_way[guide] = task
        task.add_done_callback(lambda task: self._done(guide, task))

    def _done(self, guide: Guide, task: asyncio.Task[XgrammarGuide]) -> None:
        del self._under_way[guide]
        if not task.cancelled() and task.exception() is None:
            self._cache.put(task.result())

    async def _compile(self, guide: Guide) -> XgrammarGuide:
        try:
            serialised = await self._pool.compile(guide)
            return await asyncio.to_thread(self._load, guide, serialised)
        except GuideError as error:
            raise InvalidArgument(guide.field, str(error)) from error

    def _load(self, guide: Guide, serialised: bytes) -> XgrammarGuide:
        compiled = bindings().CompiledGrammar.deserialize_json(serialised.decode(), self._tokens.info)
        loaded = XgrammarGuide(guide, compiled, self._tokens)
        state = loaded.start()
        if not (state.allows_end or state.allows_text):
            raise GuideError("allows nothing that this model's tokens can spell")
        return loaded


class _GuideCache:
    """The guides used last, as many as fit."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._guides: OrderedDict[Guide, XgrammarGuide] = OrderedDict()

    def get(self, guide: Guide) -> XgrammarGuide | None:
        if guide not in self._guides:
            return None
        self._guides.move_to_end(guide)
        return self._guides[guide]

    def put(self, compiled: XgrammarGuide) -> None:
        assert compiled.guide not in self._guides, compiled.guide
        self._guides[compiled.guide] = compiled
        self._bytes += compiled.num_bytes
        while self._bytes > self._max_bytes:
            _, forgotten = self._guides.popitem(last=False)
            self._bytes -= forgotten.num_bytes


def load_compiler(tokenizer_json: Path, vocab_size: int, limits: GuideLimits) -> GuideCompiler:
    """Reads the vocabulary: not for the event loop. Raises ValueError, OSError for one that no guide can be held to."""
    tokens = Tokens(read_token_bytes(tokenizer_json, vocab_size))
    processes = [CompileProcess(tokenizer_json, vocab_size, limits.compile) for _ in range(_PROCESSES)]
    return GuideCompiler(tokens, CompilePool(processes), limits.cache_bytes)
