"""The contract, kept by the router: before fakes, in memory and over a real connection, and before real services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from adapters_fixture import base_of, save_adapter
from contract import router_contract
from contract.postprocess_contract import write_tokenizer
from contract.router_contract import Answer, Check, Door
from fakes import bytes_model
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.suite import suite
from fakes.tokenizer import FakeTokenizer
from unit.tokenizer.model_directories import fixture_template, write_model
from weir.executor.v1.executor_pb2 import LoadAdapterRequest
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_chassis import server as chassis_server
from weir_chassis.inmemory import InMemoryChannel, InMemoryServer, connector
from weir_chassis.server import ServiceDefinition, new_chassis
from weir_chassis.testing import assert_no_leases, settle
from weir_executor.service import SERVICE as EXECUTOR
from weir_postprocess.service import SERVICE as POSTPROCESS
from weir_router.service import SERVICE as ROUTER
from weir_tokenizer.service import SERVICE as TOKENIZER

MODEL = bytes_model.VERSION.model
CHECKS = pytest.mark.parametrize(
    "check", router_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)


@CHECKS
@pytest.mark.parametrize("place", ["memory", "loopback"])
async def test_fake_workers(place: str, check: Check) -> None:
    async with suite(loopback=place == "loopback") as running:
        await check(router_contract.connect(running.channel, MODEL))


@CHECKS
async def test_two_of_each(check: Check) -> None:
    """Requests of one executor's step are then on two postprocess streams."""
    async with suite(
        executors=[FakeExecutor(), FakeExecutor(block_size=32)],
        tokenizers=[FakeTokenizer(), FakeTokenizer()],
        postprocessors=[FakePostprocess(), FakePostprocess()],
    ) as running:
        await check(router_contract.connect(running.channel, MODEL))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose tokens are bytes, a chat template, and the shape that the executor's fake engine asks for."""
    directory = write_tokenizer(tmp_path_factory.mktemp("model"))
    tokenizer_json = (directory / "tokenizer.json").read_text(encoding="utf-8")
    write_model(directory, tokenizer_json=tokenizer_json, template=fixture_template("chatml"), context=None)
    (directory / "config.json").write_text('{"max_position_embeddings": 512, "vocab_size": 257}')
    return directory


@asynccontextmanager
async def real_services(model_dir: Path, **executor_fields: Any) -> AsyncIterator[Door]:
    """One process, as `weir up --one-process` places it. Ends with everybody's leases given back."""
    async with real_suite(model_dir, **executor_fields) as (door, _):
        yield door


@asynccontextmanager
async def real_suite(
    model_dir: Path, **executor_fields: Any
) -> AsyncIterator[tuple[Door, Mapping[str, InMemoryServer]]]:
    """As `real_services`, with the servers by name."""
    models = {MODEL: str(model_dir)}
    router = {kind: (f"memory:{name}",) for kind, name in WORKERS.items()}
    async with AsyncExitStack() as stack:
        servers: dict[str, InMemoryServer] = {}
        await stack.enter_async_context(placed("tokenizer", TOKENIZER, {"models": models}, servers))
        executor = {"model_dir": model_dir, "model": MODEL, "engine": "fake", "max_model_len": 512, **executor_fields}
        await stack.enter_async_context(placed("executor", EXECUTOR, executor, servers))
        await stack.enter_async_context(placed("postprocess", POSTPROCESS, {"models": models}, servers))
        await stack.enter_async_context(placed("router", ROUTER, router, servers))
        channel = InMemoryChannel(servers["router"])
        stack.push_async_callback(channel.close)
        door = router_contract.connect(channel, MODEL)
        await router_contract.until_healthy(door)
        yield door, servers


WORKERS = {"executors": "executor", "tokenizers": "tokenizer", "postprocessors": "postprocess"}


@asynccontextmanager
async def placed(
    name: str, service: ServiceDefinition[Any], fields: dict[str, Any], servers: dict[str, InMemoryServer]
) -> AsyncIterator[None]:
    settings = service.settings.model_validate(fields)
    chassis = new_chassis(service.name, connect=connector(servers))
    server = servers[name] = InMemoryServer([chassis_server.interceptor(service, settings, chassis)])
    async with chassis_server.placed(service, settings, chassis, server) as servicers:
        await server.start()
        chassis_server.announce(chassis, servicers)
        yield
        await server.stop(None)
        await settle()
    assert_no_leases(chassis.leases)
    assert chassis.background.failure is None, chassis.background.failure


@CHECKS
async def test_real_services(model_dir: Path, check: Check) -> None:
    async with real_services(model_dir) as door:
        await check(door)


async def test_adapters_through_real_services(model_dir: Path, tmp_path: Path) -> None:
    """All agree about the hashes of an adapter's blocks, and none is shared across adapters."""
    for seed, name in enumerate(("first", "second")):
        save_adapter(tmp_path / name, base_of("llama3"), seed=seed, base_model_name_or_path="")
    fields = {"adapter_dir": tmp_path, "max_adapters": 2, "adapters": "first=first"}
    async with real_suite(model_dir, **fields) as (door, servers):
        channel = InMemoryChannel(servers["executor"])
        executor = ExecutorServiceStub(channel)
        loading = LoadAdapterRequest(name="second", directory="second")
        assert [message async for message in executor.LoadAdapter(loading)][-1].adapter.name == "second"

        async def answer(adapter: str) -> Answer:
            asked = router_contract.text(door, "x" * 100, adapter=adapter, sampling=SamplingParameters(temperature=0))
            return await router_contract.collect(door.stub.Generate(asked))

        async with asyncio.timeout(20):
            while True:
                try:
                    await answer("second")
                    break
                except grpc.RpcError:
                    await asyncio.sleep(0.05)  # the router asks for adapters once a second
        answers = [await answer(adapter) for adapter in ("", "first", "second", "first", "")]
        assert [a.usage.cached_prompt_tokens for a in answers] == [0, 0, 96, 96, 96]
        assert answers[1].token_ids == answers[3].token_ids != answers[0].token_ids == answers[4].token_ids
        await channel.close()
