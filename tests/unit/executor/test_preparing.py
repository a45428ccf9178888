"""A request that needs a guide and a stored prefix waits for both at once, and leaves nothing of either behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from contract.executor_contract import Caller, prompt_of
from unit.executor.guide_tokens import compiled, text_of
from unit.executor.lying_store import LyingStore
from unit.executor.test_kv_transfer import until
from unit.executor.test_lying_store import executor
from weir.inference.v1.guide_pb2 import Guide as ProtoGuide
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_chassis.errors import InvalidArgument, WeirError, reason_name
from weir_executor import service
from weir_executor.guided.guide import Guide
from weir_executor.guided.state import XgrammarGuide

_PROMPT = prompt_of(6 * 16 + 1)
_GUIDED = SamplingParameters(seed=1, guide=ProtoGuide(regex="(yes|no)!"))


class SlowCompiler:
    """Stands for the `GuideCompiler`: compiles when it is told to, or refuses."""

    def __init__(self) -> None:
        self.under_way = 0
        self.may_end = asyncio.Event()
        self.error: WeirError | None = None

    def known(self, guide: Guide) -> XgrammarGuide | None:
        return None

    async def compile(self, guide: Guide) -> XgrammarGuide:
        self.under_way += 1
        try:
            await self.may_end.wait()
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        return compiled(guide)


@asynccontextmanager
async def preparing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[LyingStore, SlowCompiler, Caller]]:
    """A store that holds the prompt's blocks and does not answer yet, a compiler that does not either."""
    store, compiler = LyingStore(), SlowCompiler()

    async def start(*_: Any) -> SlowCompiler:
        return compiler

    monkeypatch.setattr(service, "_start_guides", start)
    async with executor(store) as caller:
        await caller.submit(1, _PROMPT, share=True)
        await caller.until_told(1)
        await until(lambda: len(store.blocks) == 6)
    store.answering.clear()
    async with executor(store, deadline_seconds=5.0) as caller:
        await caller.submit(2, _PROMPT, share=True, sampling=_GUIDED)
        await until(lambda: len(store.matches) == 2 and compiler.under_way == 1)
        yield store, compiler, caller
        store.answering.set()
    assert not compiler.under_way
    await until(lambda: not store.leases)


@pytest.mark.parametrize("first", ["store", "compiler"])
async def test_both_are_waited_for_at_once_and_both_are_used(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with preparing(monkeypatch) as (store, compiler, caller):
        for event in (store.answering, compiler.may_end)[:: 1 if first == "store" else -1]:
            await asyncio.sleep(0.01)
            event.set()
        await caller.until_told(2)
        assert text_of(list(caller.tokens[2, 0])) in ("yes!", "no!")
        assert caller.ended[2].store_cached_tokens == 6 * 16


async def test_a_guide_that_is_refused_gives_the_prefix_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with preparing(monkeypatch) as (store, compiler, caller):
        compiler.error = InvalidArgument("sampling.guide", "told to be wrong")
        compiler.may_end.set()
        store.answering.set()
        await caller.until_told(2)
        assert reason_name(caller.failed[2].reason) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("refused", [False, True])
async def test_an_abort_ends_both(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with preparing(monkeypatch) as (_, compiler, caller):
        if refused:  # and nobody will hear of it
            compiler.error = InvalidArgument("sampling.guide", "told to be wrong")
            compiler.may_end.set()
            await until(lambda: not compiler.under_way)
        await caller.abort(2)
        await caller.until_told(2)
        assert caller.ended[2].usage.completion_tokens == 0
        await until(lambda: not compiler.under_way)
