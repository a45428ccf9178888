"""A host with real executors, of the fake engine: each model is a process, and none is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from weir.executor.v1 import host_pb2 as pb
from weir.executor.v1.executor_pb2 import GetModelInfoRequest
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.executor.v1.host_pb2_grpc import ModelHostServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.clock import SystemClock
from weir_chassis.errors import WeirError, reason_name
from weir_chassis.server import Registration, new_chassis
from weir_chassis.status import from_rpc_error
from weir_chassis.testing import serve_in_memory
from weir_executor.host import model_host
from weir_executor.host.hosted_models import Hosted, HostedModels, State
from weir_executor.host.model_host import ModelHost
from weir_executor.host.service import SERVICE
from weir_executor.host.settings import ModelHostSettings, port_range

DEMO = Path(__file__).parents[3] / "deploy/models/demo"
FAKE = {"WEIR_EXECUTOR_ENGINE": "fake", "WEIR_ROUTER_PORT": "1", "PATH": os.environ["PATH"]}


@pytest.fixture
def settings(tmp_path: Path) -> ModelHostSettings:
    """Two models, links that a folder of models may well be of; and a directory that holds none."""
    folder = tmp_path / "models"
    (folder / "empty").mkdir(parents=True)
    for name in ("one", "two", "broken"):
        (folder / name).mkdir()
        for file in ("config.json", "tokenizer.json"):  # all that the fake engine asks for
            shutil.copy(DEMO / file, folder / name)
    (folder / "broken" / "config.json").write_text("{")
    return ModelHostSettings(model_folder=folder, log_dir=tmp_path / "logs", max_models=2)


@asynccontextmanager
async def hosting(settings: ModelHostSettings) -> AsyncIterator[ModelHost]:
    """Ends with no process left."""
    host = ModelHost(settings, FAKE, SystemClock())
    try:
        yield host
    finally:
        await host.close()
        assert not list(host.models)
        assert not executors()


def executors() -> list[int]:
    """Process ids of our own children that are executors, and run."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"weir_executor" in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
    return found


async def loaded(host: ModelHost, model: str, directory: str) -> Hosted:
    messages = [message async for message in host.load(model, directory)]
    assert isinstance(messages[-1], Hosted)
    return messages[-1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def served_model(address: str) -> str:
    async with open_channel(address) as channel:
        info = await ExecutorServiceStub(channel).GetModelInfo(GetModelInfoRequest(), timeout=30)
    return str(info.model_version.model)


async def test_models_come_side_by_side_and_go(settings: ModelHostSettings) -> None:
    async with hosting(settings) as host:
        one, two = await asyncio.gather(loaded(host, "one", "one"), loaded(host, "second", "two"))
        assert one.address != two.address
        assert [await served_model(hosted.address) for hosted in (one, two)] == ["one", "second"]
        assert one.version.tokenizer_hash == two.version.tokenizer_hash
        with pytest.raises(WeirError) as refused:
            await loaded(host, "third", "one")
        assert reason_name(refused.value.reason) == "OVERLOADED"
        await host.unload("one")
        assert [hosted.model for hosted in host.models] == ["second"]
        with pytest.raises(grpc.RpcError):
            await served_model(one.address)


@pytest.mark.parametrize(
    ("model", "directory", "reason", "words"),
    [
        ("", "one", "INVALID_ARGUMENT", "model: 0 bytes; 1 to 128"),
        ("m" * 129, "one", "INVALID_ARGUMENT", "129 bytes"),
        ("m", "../logs", "INVALID_ARGUMENT", "not below the model folder"),
        ("m", "empty", "INVALID_ARGUMENT", "config.json is missing"),
        ("m", "broken", "INVALID_ARGUMENT", "cannot be served: executor ended with code"),
    ],
)
async def test_what_cannot_be_loaded_leaves_nothing(
    settings: ModelHostSettings, model: str, directory: str, reason: str, words: str
) -> None:
    async with hosting(settings) as host:
        with pytest.raises(WeirError, match=words) as refused:
            await loaded(host, model, directory)
        assert reason_name(refused.value.reason) == reason
        assert not list(host.models)


async def test_a_load_that_is_given_up_leaves_nothing(settings: ModelHostSettings) -> None:
    async with hosting(settings) as host:
        task = asyncio.create_task(loaded(host, "one", "one"))
        await until(lambda: len(host.models) == 1)
        with pytest.raises(WeirError) as refused:
            await host.unload("one")
        assert reason_name(refused.value.reason) == "NOT_FOUND", "it is on its way in"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not list(host.models)


async def test_a_process_that_dies_is_started_again_under_its_address(
    settings: ModelHostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_host, "_PAUSE_SECONDS", 0.0)
    async with hosting(settings) as host:
        one = await loaded(host, "one", "one")
        (process,) = executors()
        os.kill(process, signal.SIGKILL)
        await until(lambda: one.restarts == 1 and not one.problem)
        assert await served_model(one.address) == "one"


async def test_one_that_is_killed_while_it_loads_is_given_another_try(
    settings: ModelHostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_host, "_PAUSE_SECONDS", 0.0)
    async with hosting(settings) as host:
        loading = asyncio.create_task(loaded(host, "one", "one"))
        await until(lambda: bool(executors()))
        (process,) = executors()
        os.kill(process, signal.SIGKILL)
        one = await loading
        assert (one.restarts, one.state, one.problem) == (1, State.SERVING, "")


async def test_one_that_dies_again_and_again_is_given_up_and_says_why(
    settings: ModelHostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_host, "_PAUSE_SECONDS", 0.0)
    async with hosting(settings) as host:
        one = await loaded(host, "one", "one")
        (settings.model_folder / "one" / "config.json").write_text("{")
        (process,) = executors()
        os.kill(process, signal.SIGKILL)
        await until(lambda: one.state is State.FAILED)
        assert "config.json" in one.problem
        await host.unload("one")


def test_a_name_is_taken_from_its_first_moment() -> None:
    models = HostedModels(2)
    one = models.reserve("one", lambda: Hosted("one", "one", Path(), "", "a:1"))
    with pytest.raises(WeirError, match="is loading here"):
        models.reserve("one", lambda: one)
    models.forget(Hosted("one", "", Path(), "", ""))
    assert list(models) == [one], "another one of the name takes nothing with it"
    models.forget(one)
    assert not len(models)


async def test_the_service_tells_how_far_it_is(settings: ModelHostSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)
    chassis = new_chassis("model_host")
    async with SERVICE.build(settings, chassis) as servicers, serve_in_memory(*_registrations(servicers)) as channel:
        stub = ModelHostServiceStub(channel)
        *_, last = [message async for message in stub.LoadModel(pb.LoadModelRequest(model="m", directory="one"))]
        listed = await stub.ListHostedModels(pb.ListHostedModelsRequest())
        assert list(listed.models) == [last.model]
        assert (last.model.state, last.model.model_version.model) == (pb.HOSTED_MODEL_STATE_SERVING, "m")
        assert listed.max_models == 2
        with pytest.raises(grpc.RpcError) as refused:
            [_ async for _ in stub.LoadModel(pb.LoadModelRequest(model="m", directory="one"))]
        assert reason_name(from_rpc_error(refused.value).reason) == "ALREADY_EXISTS"
        *_, gone = [message async for message in stub.UnloadModel(pb.UnloadModelRequest(model="m"))]
        assert not gone.draining
        with pytest.raises(grpc.RpcError) as unknown:
            [_ async for _ in stub.UnloadModel(pb.UnloadModelRequest(model="m"))]
        assert reason_name(from_rpc_error(unknown.value).reason) == "NOT_FOUND"


def _registrations(servicers: Any) -> list[Registration]:
    return list(servicers.registrations)


@pytest.mark.parametrize("ports", ["a", "9-8", "0-3", "65535-65536"])
def test_what_is_no_range_of_ports_is_refused(ports: str) -> None:
    with pytest.raises(ValueError, match=r"ports are|no range"):
        port_range(ports)


def test_one_port_is_a_range() -> None:
    assert port_range("7711") == range(7711, 7712)
    assert port_range("7711-7713") == range(7711, 7714)


def test_settings_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    right: dict[str, Any] = {"model_folder": tmp_path, "log_dir": tmp_path, "max_models": 3}
    for wrong in ({"model_folder": tmp_path / "none"}, {"ports": "7711-7712"}, {"ports": "x"}):
        with pytest.raises(ValidationError):
            ModelHostSettings(**{**right, **wrong})
