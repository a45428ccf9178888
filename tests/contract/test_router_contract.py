"""The contract, kept by the router: before fakes, in memory and over a real connection, and before real services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from contract import router_contract
from contract.postprocess_contract import write_tokenizer
from contract.router_contract import Check, Door
from fakes import bytes_model
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.suite import suite
from fakes.tokenizer import FakeTokenizer
from unit.tokenizer.model_directories import fixture_template, write_model
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
async def real_services(model_dir: Path) -> AsyncIterator[Door]:
    """One process, as `weir up --one-process` places it. Ends with everybody's leases given back."""
    models = {MODEL: str(model_dir)}
    router = {kind: (f"memory:{name}",) for kind, name in WORKERS.items()}
    async with AsyncExitStack() as stack:
        servers: dict[str, InMemoryServer] = {}
        await stack.enter_async_context(placed("tokenizer", TOKENIZER, {"models": models}, servers))
        executor = {"model_dir": model_dir, "model": MODEL, "engine": "fake", "max_model_len": 512}
        await stack.enter_async_context(placed("executor", EXECUTOR, executor, servers))
        await stack.enter_async_context(placed("postprocess", POSTPROCESS, {"models": models}, servers))
        await stack.enter_async_context(placed("router", ROUTER, router, servers))
        channel = InMemoryChannel(servers["router"])
        stack.push_async_callback(channel.close)
        door = router_contract.connect(channel, MODEL)
        await router_contract.until_healthy(door)
        yield door


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
