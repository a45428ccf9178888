"""Whatever a store does, the tokens are those without a store, and what was right of what it sent is used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from contract.executor_contract import GREEDY, SEEDED, Caller, calling, connect, prompt_of, until_idle
from models_fixture import tiny_model
from unit.executor.lying_store import LIES, STALLS, LyingStore
from unit.executor.store_double import serve_store
from unit.executor.test_kv_transfer import FILES, until
from weir.kvstore.v1 import kvstore_pb2 as kv
from weir_chassis.errors import Internal, Overloaded
from weir_chassis.server import new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory
from weir_executor.estimate import Estimate
from weir_executor.kv_transfer import fetch
from weir_executor.kv_transfer.predictor import Computing
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.service import serving
from weir_executor.settings import ExecutorSettings

_BLOCKS, _BLOCK_SIZE = 6, 16
# One that no honest answer misses, and one for those that never come.
_DEADLINE_SECONDS, _SHORT_SECONDS = 20.0, 0.15
Tokens = tuple[list[int], list[int]]


@pytest.fixture(autouse=True)
def _always_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model computes anything sooner than a store answers; here the store is to be listened to."""
    monkeypatch.setattr(fetch, "computing", lambda *_: Computing(None, Estimate(0.0)))


@asynccontextmanager
async def executor(store: LyingStore, deadline_seconds: float = _DEADLINE_SECONDS) -> AsyncIterator[Caller]:
    """The paged engine with a small model, its service, and one stream to it. Nothing is held at the end."""
    chassis, model_dir = new_chassis("executor"), tiny_model("llama3")
    settings = ExecutorSettings(
        model_dir=model_dir,
        model="tiny",
        kvstore_address="store",
        kvstore_min_blocks=1,
        kvstore_deadline_seconds=deadline_seconds,
    )
    engine = load_engine(PagedEngineConfig(model_dir, num_blocks=2048, emit_full_blocks=True, check_integrity=True))
    async with serve_store(store) as channel:
        async with (
            serving(engine, FILES, settings, replace(chassis, connect=lambda _: channel)) as servicers,
            chassis.background,
            serve_in_memory(*servicers.registrations) as door,
        ):
            async with calling(connect(door)) as caller:
                yield caller
            await until_idle(connect(door))
        assert chassis.background.failure is None
    assert_no_leases(chassis.leases)


class Asking:
    """Prompts on one stream, each answered greedily and then with a seed, from the blocks that the first one left."""

    def __init__(self, caller: Caller) -> None:
        self._caller, self._handles = caller, count(1)

    async def answer(self, salt: int) -> tuple[Tokens, int]:
        """The tokens, and how many of the prompt's blocks came from the store."""
        prompt, answers, loaded = prompt_of(_BLOCKS * _BLOCK_SIZE + 1, salt), [], []
        for sampling in (GREEDY, SEEDED):
            handle = next(self._handles)
            await self._caller.submit(handle, prompt, share=True, sampling=sampling, max_tokens=12)
            await self._caller.until_told(handle)
            assert handle in self._caller.ended, self._caller.failed
            answers.append(self._caller.tokens[handle, 0])
            loaded.append(self._caller.ended[handle].store_cached_tokens)
            usage = self._caller.ended[handle].usage
            assert usage.cached_prompt_tokens == loaded[-1] + self._caller.ended[handle].engine_cached_tokens
        return (answers[0], answers[1]), loaded[0] // _BLOCK_SIZE


async def truth(store: LyingStore, salts: range) -> dict[int, Tokens]:
    """Computed by an executor that finds nothing in the store, and leaves its blocks there."""
    async with executor(store) as caller:
        asking = Asking(caller)
        answers = {salt: await asking.answer(salt) for salt in salts}
        assert not any(loaded for _, loaded in answers.values())
        await until(lambda: len(store.blocks) == len(salts) * _BLOCKS)  # what is generated fills none
    assert len({str(tokens) for tokens, _ in answers.values()}) == len(salts), "they tell prompts apart"
    return {salt: tokens for salt, (tokens, _) in answers.items()}


async def test_no_lie_about_blocks_changes_a_token() -> None:
    store, salts = LyingStore(), iter(range(2 * len(LIES)))
    wanted = await truth(store, range(2 * len(LIES)))
    async with executor(store) as caller:
        asking = Asking(caller)
        for lie, (told, used) in LIES.items():
            store.told = told
            salt = next(salts)
            assert await asking.answer(salt) == (wanted[salt], used), lie
            store.be_honest()
            salt = next(salts)
            assert await asking.answer(salt) == (wanted[salt], _BLOCKS), f"after {lie}"
            await until(lambda: not store.leases)


async def test_no_stall_changes_a_token() -> None:
    store, salts = LyingStore(), range(len(STALLS))
    wanted = await truth(store, salts)
    async with executor(store, _SHORT_SECONDS) as caller:
        asking = Asking(caller)
        for salt, (stall, (told, used)) in zip(salts, STALLS.items(), strict=True):
            store.told = told
            tokens, loaded = await asking.answer(salt)
            assert tokens == wanted[salt], stall
            assert loaded <= used, stall  # on a busy machine fewer come before the time is over


def _says(**fields: Any) -> Callable[[kv.MatchPrefixResponse], None]:
    def said(response: kv.MatchPrefixResponse) -> None:
        for name, value in fields.items():
            setattr(response, name, value)

    return said


def _says_tiers(*ranges: tuple[int, str]) -> Callable[[kv.MatchPrefixResponse], None]:
    return lambda response: response.ranges.extend(kv.MatchedRange(blocks=blocks, tier=tier) for blocks, tier in ranges)


# What it says it holds, and how many blocks are used.
_CLAIMS: dict[str, tuple[Callable[[kv.MatchPrefixResponse], None], int]] = {
    "more than was asked for": (_says(matched_blocks=2**32 - 1), _BLOCKS),
    "less than it leases": (_says(matched_blocks=2), 2),
    "nothing, and a lease": (_says(matched_blocks=0), 0),
    "blocks, and no lease": (lambda response: response.ClearField("lease_id"), 0),
    "a lease that is none": (_says(lease_id="none"), 0),
    "ranges longer than the chain": (_says_tiers((2**32 - 1, "ram")), _BLOCKS),
    "ranges of nothing in tiers without end": (_says_tiers(*((0, f"tier {i}") for i in range(1000))), _BLOCKS),
    "some ranges": (_says_tiers((1, "ram"), (1, "")), _BLOCKS),
}


async def test_no_lie_about_what_it_holds_changes_a_token() -> None:
    store, salts = LyingStore(), range(len(_CLAIMS))
    wanted = await truth(store, salts)
    async with executor(store) as caller:
        asking = Asking(caller)
        for salt, (claim, (said, used)) in zip(salts, _CLAIMS.items(), strict=True):
            store.said = said
            assert await asking.answer(salt) == (wanted[salt], used), claim
            store.leases.clear()  # those that it never told of
            store.be_honest()


@pytest.mark.parametrize("rpc", ["match", "get", "release", "put"])
@pytest.mark.parametrize("error", [None, Internal("told to"), Overloaded("told to")], ids=["hangs", "fails", "is full"])
async def test_no_call_that_hangs_or_fails_changes_a_token(rpc: str, error: Exception | None) -> None:
    store, salts = LyingStore(), range(3)
    wanted = await truth(store, salts)
    never_answers = error is None and rpc in ("match", "get")
    async with executor(store, _SHORT_SECONDS if never_answers else _DEADLINE_SECONDS) as caller:
        if error is None:
            store.hangs = frozenset({rpc})
        else:
            store.fails = {rpc: error}
        asking = Asking(caller)
        answers = [await asking.answer(salt) for salt in salts]
        assert [tokens for tokens, _ in answers] == [wanted[salt] for salt in salts]
        assert [loaded for _, loaded in answers] == [_BLOCKS if rpc in ("release", "put") else 0] * 3
