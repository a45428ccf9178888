"""TensorRT-LLM's connector and the real kvstore: what one engine's ranks computed, another engine's ranks load.

Everything but the engine is real: the executor's service, its loads, the folder in memory, each rank's way to the
store. The fake engine's blocks are bytes that follow from the tokens, so a wrong one is seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.executor_contract import GREEDY, calling, prompt_of
from contract.test_executor_kvstore import MIB, executor
from fakes.trtllm.connected import ConnectedLLM, connected_library
from fakes.trtllm.llm import library
from unit.executor.trtllm.making import config
from weir.kvstore.v1 import kvstore_pb2 as kv
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.server import new_chassis
from weir_chassis.testing import assert_no_leases, serve_on_loopback
from weir_executor.trtllm.config import ConnectorConfig
from weir_executor.trtllm.connector import entry
from weir_executor.trtllm.connector.area import Area
from weir_executor.trtllm.engine import TrtEngine
from weir_executor.trtllm.load import load_engine
from weir_kvstore.service import build as build_kvstore
from weir_kvstore.settings import KvStoreSettings

PROMPT = prompt_of(6 * 16 + 5)


@pytest.fixture(autouse=True)
def as_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the engine's processes find of TensorRT-LLM."""
    monkeypatch.setattr(entry, "load_connector_library", connected_library)
    entry._classes.cache_clear()
    yield
    entry._classes.cache_clear()


@asynccontextmanager
async def kvstore(socket: Path) -> AsyncIterator[grpc.aio.Channel]:
    chassis = new_chassis("kvstore")
    settings = KvStoreSettings(capacity_bytes=16 * MIB, max_staged_bytes=16 * MIB, arena_dir=None)
    async with (
        build_kvstore(settings, chassis) as servicers,
        chassis.background,
        serve_on_loopback(*servicers.registrations, socket=socket) as channel,
    ):
        yield channel
    assert_no_leases(chassis.leases)


def make_engine(socket: Path, ranks: int, staging_bytes: int = MIB) -> TrtEngine:
    connector = ConnectorConfig(
        kvstore_address=f"unix:{socket}",
        staging_dir=socket.parent,
        staging_bytes=staging_bytes,
        queue_bytes=MIB,
        bytes_per_second=1e9,
    )
    told = config(tensor_parallel=ranks, connector=connector, max_num_seqs=8)
    return load_engine(told, library(LLM=ConnectedLLM), end_process=lambda: pytest.fail("it does not end"))


def wrong_hits(engine: TrtEngine) -> int:
    return int(engine._llm.ranks.counts["wrong hits"])


@pytest.mark.parametrize("ranks", [1, 2])
async def test_what_one_engine_computed_another_loads(tmp_path: Path, ranks: int) -> None:
    socket = tmp_path / "store"
    async with kvstore(socket) as store:
        engine = await asyncio.to_thread(make_engine, socket, ranks)
        async with executor("memory", engine, store) as stub, calling(stub) as caller:
            await caller.submit(1, PROMPT, share=True, sampling=GREEDY, max_tokens=24)
            await caller.until_told(1)
            assert caller.ended[1].store_cached_tokens == 0
            computed = caller.tokens[1, 0]
            # Nobody asks anything more of the engine: what it has must get there all the same.
            await until_stored(store, 7 * ranks)
        engine = await asyncio.to_thread(make_engine, socket, ranks)
        async with executor("memory", engine, store) as stub, calling(stub) as caller:
            await caller.submit(1, PROMPT, share=True, sampling=GREEDY, max_tokens=24)
            await caller.until_told(1)
            assert caller.ended[1].store_cached_tokens == 6 * 16
            assert caller.tokens[1, 0] == computed
            assert wrong_hits(engine) == 0
            await caller.submit(2, PROMPT, share=False, sampling=GREEDY, max_tokens=24)
            await caller.until_told(2)
            assert caller.ended[2].store_cached_tokens == 0, "it shares nothing with anybody"
    assert [path.name for path in tmp_path.iterdir() if path != socket] == []


async def test_the_engine_hears_of_a_request_once_its_prefix_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket, stage, seen = tmp_path / "store", Area.stage, list[int]()

    def slowly(self: Area, *told: Any) -> Any:
        time.sleep(0.1)
        seen.append(len(engine._llm.submitted))
        return stage(self, *told)

    async with kvstore(socket) as store:
        for _ in range(2):
            engine = await asyncio.to_thread(make_engine, socket, 1)
            monkeypatch.setattr(Area, "stage", slowly)
            async with executor("memory", engine, store) as stub, calling(stub) as caller:
                await caller.submit(1, PROMPT, share=True, sampling=GREEDY, max_tokens=24)
                await caller.until_told(1)
                await until_stored(store, 7)
    assert seen == [1], "only the canary of its start"


async def test_an_engine_of_other_parts_finds_nothing_that_would_be_wrong(tmp_path: Path) -> None:
    socket = tmp_path / "store"
    async with kvstore(socket) as store:
        for ranks in (1, 2):
            engine = await asyncio.to_thread(make_engine, socket, ranks)
            async with executor("memory", engine, store) as stub, calling(stub) as caller:
                await caller.submit(1, PROMPT, share=True, sampling=GREEDY, max_tokens=24)
                await caller.until_told(1)
                assert caller.ended[1].store_cached_tokens == 0
                await until_stored(store, {1: 7, 2: 21}[ranks])


async def test_without_room_to_stage_it_is_computed(tmp_path: Path) -> None:
    socket = tmp_path / "store"
    async with kvstore(socket) as store:
        for ranks in (2, 2):
            engine = await asyncio.to_thread(make_engine, socket, ranks, staging_bytes=1)
            async with executor("memory", engine, store) as stub, calling(stub) as caller:
                await caller.submit(1, PROMPT, share=True, sampling=GREEDY, max_tokens=24)
                await caller.until_told(1)
                assert caller.ended[1].store_cached_tokens == 0
                await until_stored(store, 14)


async def test_a_store_that_nobody_reaches_costs_the_blocks_alone(tmp_path: Path) -> None:
    socket = tmp_path / "store"
    async with kvstore(socket) as store:
        engine = await asyncio.to_thread(make_engine, tmp_path / "elsewhere", 1)
        async with executor("memory", engine, store) as stub, calling(stub) as caller:
            await caller.submit(1, PROMPT, share=True, sampling=GREEDY, max_tokens=24)
            await caller.until_told(1)
            assert len(caller.tokens[1, 0]) == 24


async def until_stored(channel: grpc.aio.Channel, blocks: int) -> None:
    stub = KvStoreServiceStub(channel)
    async with asyncio.timeout(30):
        while sum(tier.stored for tier in (await stub.GetStats(kv.GetStatsRequest())).tiers) < blocks:
            await asyncio.sleep(0.01)
