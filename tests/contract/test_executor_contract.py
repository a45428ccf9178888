"""The contract, kept by the executor: with the fake and the paged engine, over a real connection and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from contract import executor_contract
from contract.executor_contract import Check, until_idle
from fakes.openengine.double import OpenEngineDouble
from fakes.trtllm.llm import library, never
from models_fixture import tiny_model
from weir.inference.v1.model_pb2 import ModelVersion
from weir_chassis.server import Chassis, new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback
from weir_executor.engine import Engine
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.mapping import cache_scope
from weir_executor.model_files import ModelFiles
from weir_executor.openengine.config import OpenEngineConfig
from weir_executor.openengine.load import load_engine as load_openengine
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import Sampling
from weir_executor.service import serving
from weir_executor.settings import ExecutorSettings
from weir_executor.trtllm.config import Transceiver, TrtConfig
from weir_executor.trtllm.load import load_engine as load_trtllm

if TYPE_CHECKING:
    from weir.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub as Stub

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
FILES = ModelFiles(ModelVersion(model="tiny", revision="r1", tokenizer_hash="t1"), Sampling(), {})
SETTINGS = ExecutorSettings(model_dir=Path("unused"), model="tiny")


def make_fake() -> Engine:
    return FakeEngine(FakeEngineConfig(check_integrity=True))


def make_paged() -> Engine:
    config = PagedEngineConfig(
        tiny_model("llama3"),
        num_blocks=128,
        max_num_seqs=16,
        max_batched_tokens=128,
        num_threads=1,
        check_integrity=True,
    )
    return load_engine(config)


def make_trtllm() -> Engine:
    config = TrtConfig(
        model_dir=tiny_model("llama3"),
        max_model_len=2048,
        block_size=16,
        kv_cache_max_tokens=128 * 16,
        max_num_seqs=16,
        max_batched_tokens=128,
        transceiver=Transceiver(),
    )
    return load_trtllm(config, library(), end_process=never)


DOUBLES: list[OpenEngineDouble] = []


@pytest.fixture(autouse=True)
def _doubles() -> Iterator[None]:
    yield
    while DOUBLES:
        DOUBLES.pop().close()


def make_openengine() -> Engine:
    double = OpenEngineDouble(
        tiny_model("llama3"),
        max_model_len=2048,
        block_size=16,
        kv_cache_max_tokens=128 * 16,
        max_num_seqs=16,
        max_batched_tokens=128,
    )
    DOUBLES.append(double)
    config = OpenEngineConfig(
        address=double.address,
        model="tiny",
        vocab_size=320,
        eos_token_ids=frozenset({2}),
        max_model_len=2048,
        plain_scope=cache_scope(FILES.version),
    )
    return load_openengine(config)


# What an engine has not, by what the names of the checks say. It refuses it, by type and name: see its own tests.
LACKS: Mapping[str, Mapping[str, str]] = {
    "trtllm": {
        "handed_off_blocks_are_read": "blocks that are read: its engines move them between themselves",
        "embed": "vectors: its LLM generates, and its Embed is unimplemented",
        "pooling": "vectors: its LLM generates, and its Embed is unimplemented",
        "speculation": "a choice of drafts for each request: they are the engine's, by TRTLLM_SPECULATION",
    },
    "openengine": {
        "hand_off": "prompts for other engines: openengine.v1 hands them over between servers of one kind only",
        "handoff": "prompts for other engines: openengine.v1 hands them over between servers of one kind only",
        "handed_off": "prompts for other engines: openengine.v1 hands them over between servers of one kind only",
        "embed": "vectors: openengine.v1 has no call for them",
        "pooling": "vectors: openengine.v1 has no call for them",
        "speculation": "drafts by request: openengine.v1 has no word for them",
        "resumed_output_goes_on": "draws by seed and place alone: the contract does not say what they depend on",
        "min_tokens_hold_off": "stop tokens that wait: openengine.v1 has no word for it",
    },
}
ENGINES: Mapping[str, Callable[[], Engine]] = {
    "fake": make_fake,
    "paged": make_paged,
    "trtllm": make_trtllm,
    "openengine": make_openengine,
}


@asynccontextmanager
async def serve(place: str, engine: Engine, chassis: Chassis) -> AsyncIterator[Stub]:
    async with (
        serving(engine, FILES, SETTINGS, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations) as channel,
    ):
        yield executor_contract.connect(channel)


@pytest.mark.parametrize("check", executor_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("place", PLACES)
async def test_contract(place: str, engine: str, check: Check) -> None:
    for words, what in LACKS.get(engine, {}).items():
        if words in check.__name__:
            pytest.skip(f"{engine} has no {what}")
    chassis = new_chassis("executor")
    async with serve(place, ENGINES[engine](), chassis) as stub:
        await check(stub)
        await until_idle(stub)
    assert_no_leases(chassis.leases)
    assert chassis.background.failure is None
