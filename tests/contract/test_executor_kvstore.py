"""The executor and the real kvstore: what one executor computed, another loads, and draws the same tokens after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import pytest

from contract.executor_contract import GREEDY, calling, connect, prompt_of
from models_fixture import tiny_model
from weir.inference.v1.model_pb2 import ModelVersion
from weir.kvstore.v1 import kvstore_pb2 as kv
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.server import new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback
from weir_executor.engine import Engine
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.kv_transfer.grpc_transport import GrpcTransport
from weir_executor.model_files import ModelFiles
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import Sampling
from weir_executor.service import serving
from weir_executor.settings import ExecutorSettings
from weir_kvstore.service import build as build_kvstore
from weir_kvstore.settings import KvStoreSettings

if TYPE_CHECKING:
    from weir.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub as Stub

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
FILES = ModelFiles(ModelVersion(model="tiny", revision="r1", tokenizer_hash="t1"), Sampling(), {})
SETTINGS = ExecutorSettings(model_dir=Path("unused"), model="tiny", kvstore_address="store", kvstore_deadline_seconds=5)
MIB = 1 << 20


def make_fake() -> Engine:
    return FakeEngine(FakeEngineConfig(emit_full_blocks=True))


def make_paged() -> Engine:
    return load_engine(
        PagedEngineConfig(
            tiny_model("llama3"),
            num_blocks=64,
            max_num_seqs=8,
            max_batched_tokens=128,
            num_threads=1,
            emit_full_blocks=True,
        )
    )


ENGINES: Mapping[str, Callable[[], Engine]] = {"fake": make_fake, "paged": make_paged}


@asynccontextmanager
async def kvstore(place: str, arena_dir: Path | None) -> AsyncIterator[grpc.aio.Channel]:
    chassis = new_chassis("kvstore")
    settings = KvStoreSettings(capacity_bytes=16 * MIB, max_staged_bytes=16 * MIB, arena_dir=arena_dir)
    async with (
        build_kvstore(settings, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations) as channel,
    ):
        yield channel
    assert_no_leases(chassis.leases)


@asynccontextmanager
async def executor(place: str, engine: Engine, store: grpc.aio.Channel) -> AsyncIterator[Stub]:
    chassis = replace(new_chassis("executor"), connect=lambda _: cast("grpc.aio.Channel", _Borrowed(store)))
    async with (
        serving(engine, FILES, SETTINGS, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations) as channel,
    ):
        yield connect(channel)
    assert_no_leases(chassis.leases)


class _Borrowed:
    """A channel that several executors use one after another, so that none of them closes it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> object:
        return getattr(self._channel, name)

    async def close(self, grace: float | None = None) -> None:
        """It is not theirs."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shares", [True, False], ids=["by_reference", "by_value"])
async def test_what_one_executor_computed_another_loads(
    shares: bool, place: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shares:
        monkeypatch.setattr(GrpcTransport, "get", None)  # nothing may go by value
        monkeypatch.setattr(GrpcTransport, "put", None)
    prompt = prompt_of(6 * 16 + 5)
    async with kvstore(place, tmp_path if shares else None) as store:
        async with executor(place, ENGINES[engine](), store) as stub, calling(stub) as caller:
            await caller.submit(1, prompt, share=True, sampling=GREEDY, max_tokens=24)
            await caller.until_told(1)
            assert caller.ended[1].store_cached_tokens == 0
            computed = caller.tokens[1, 0]
            await _until_stored(store, blocks=7)
        async with executor(place, ENGINES[engine](), store) as stub, calling(stub) as caller:
            await caller.submit(1, prompt, share=True, sampling=GREEDY, max_tokens=24)
            await caller.until_told(1)
            assert caller.ended[1].store_cached_tokens == 6 * 16
            assert dict(caller.ended[1].store_cached_tokens_by_tier) == {"ram": 6 * 16}
            assert caller.tokens[1, 0] == computed


async def _until_stored(channel: grpc.aio.Channel, blocks: int) -> None:
    stub = KvStoreServiceStub(channel)
    async with asyncio.timeout(10):
        while sum(tier.stored for tier in (await stub.GetStats(kv.GetStatsRequest())).tiers) < blocks:
            await asyncio.sleep(0.01)
