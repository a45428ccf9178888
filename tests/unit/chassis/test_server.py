"""The life of a service: in this process by a `Stop`, and as a process of its own by signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from unit.chassis import toy_service
from unit.chassis.call_conformance import SERVICE, ScriptStub, add_script_to_server, wait_for_ever
from unit.chassis.toy_service import TOY, ToySettings
from weir_chassis import errors
from weir_chassis.channel import open_channel
from weir_chassis.fleet.servicer import SERVICE_NAME as INSTANCE_SERVICE
from weir_chassis.inmemory import InMemoryChannel, InMemoryServer
from weir_chassis.server import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    Chassis,
    Registration,
    ServiceDefinition,
    Servicers,
    announce,
    drain,
    interceptor,
    new_chassis,
    new_server,
    placed,
)
from weir_chassis.status import from_rpc_error
from weir_chassis.stopping import Stop

LIMIT_SECONDS = 20.0


class Running:
    """A toy process and what it logged."""

    def __init__(self, process: Process):
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def wait_for(self, event: str) -> dict[str, Any]:
        assert self.process.stderr is not None
        async with asyncio.timeout(LIMIT_SECONDS):
            while raw := await self.process.stderr.readline():
                line = json.loads(raw)
                self.lines.append(line)
                if line["event"] == event:
                    return dict(line)
        raise AssertionError(f"no {event!r} among {self.lines}")

    async def exit_code(self) -> int:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await self.process.wait()


async def start(**settings: str) -> Process:
    environment = {**os.environ, **{f"WEIR_TOY_{name}".upper(): value for name, value in settings.items()}}
    return await asyncio.create_subprocess_exec(sys.executable, toy_service.__file__, env=environment, stderr=PIPE)


@asynccontextmanager
async def toy(**settings: str) -> AsyncIterator[Running]:
    process = await start(**settings)
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_process_serves_drains_and_stops() -> None:
    grpc.aio.init_grpc_aio()
    async with toy(drain_seconds="10") as running:
        address = (await running.wait_for("serving"))["address"]
        async with open_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", SERVICE, "model:m"):
                answer = await health.Check(HealthCheckRequest(service=name), timeout=LIMIT_SECONDS)
                assert answer.status == HealthCheckResponse.SERVING
            assert SERVICE in await reflected(channel)
            watch = health.Watch(HealthCheckRequest(service=""))
            await watch.read()
            call = ScriptStub(channel).unary(b"0.3")
            await asyncio.sleep(0.05)
            running.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING, "before the drain is over"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ScriptStub(channel).unary(b"0")
            assert isinstance(from_rpc_error(refused.value), errors.Draining)
            assert await call == b"slept", "running calls finish"
            assert await running.exit_code() == EXIT_OK


async def reflected(channel: grpc.aio.Channel) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([request]), timeout=LIMIT_SECONDS):
        return [service.name for service in answer.list_services_response.service]
    raise AssertionError("no answer")


async def test_a_second_signal_forces() -> None:
    grpc.aio.init_grpc_aio()
    async with toy(drain_seconds="600") as running:
        address = (await running.wait_for("serving"))["address"]
        async with open_channel(address) as channel:
            call = ScriptStub(channel).unary(b"600")
            await asyncio.sleep(0.1)
            running.process.send_signal(signal.SIGINT)
            await running.wait_for("draining")
            running.process.send_signal(signal.SIGINT)
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                await call
            assert isinstance(from_rpc_error(cut.value), errors.Draining)
        assert await running.exit_code() == EXIT_OK


async def test_the_death_of_a_background_task_stops_the_process() -> None:
    async with toy(fail_after_seconds="0.05") as running:
        failed = await running.wait_for("background_task_failed")
        assert failed["exception"][0]["exc_value"] == "the loop died"
        assert await running.exit_code() == EXIT_FAILED


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"port": "http"}, "toy: WEIR_TOY_PORT='http'"),
        ({"prot": "1"}, "toy: WEIR_TOY_PROT: no such setting; did you mean WEIR_TOY_PORT?"),
        ({"fail_in_build": "true"}, "toy: WEIR_TOY_MODEL_DIR: there is nothing"),
    ],
)
async def test_wrong_settings_end_the_process_with_a_sentence(settings: dict[str, str], says: str) -> None:
    process = await start(**settings)
    _, said = await process.communicate()
    assert process.returncode == EXIT_USAGE
    assert said.decode().startswith(says)
    assert "Traceback" not in said.decode()


async def test_a_taken_port_is_a_wrong_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await start(port=str(taken.getsockname()[1]))
        _, said = await process.communicate()
    assert process.returncode == EXIT_USAGE
    assert "WEIR_TOY_HOST, WEIR_TOY_PORT: cannot listen on 127.0.0.1:" in said.decode()


PARENT = """
import os, subprocess, sys, time
environment = {**os.environ, "WEIR_TOY_EXIT_WITH_PARENT": str(os.getpid())}
child = subprocess.Popen([sys.executable, sys.argv[1]], env=environment)
print(child.pid, flush=True)
time.sleep(600)
"""


async def test_a_child_does_not_outlive_its_parent() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, toy_service.__file__, stdout=PIPE, stderr=PIPE
    )
    running = Running(parent)
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    try:
        await running.wait_for("serving")
        parent.kill()
        await running.wait_for("parent_gone")
        await running.wait_for("stopped")
        # Both pipes end when the last process that holds them, the child, is gone.
        await asyncio.wait_for(parent.communicate(), LIMIT_SECONDS)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise


# In this process


@asynccontextmanager
async def in_memory(service: ServiceDefinition[Any], chassis: Chassis) -> AsyncIterator[tuple[Servicers, Any]]:
    settings = ToySettings()
    server = InMemoryServer([interceptor(service, settings, chassis)])
    async with placed(service, settings, chassis, server) as servicers:
        await server.start()
        announce(chassis, servicers)
        async with InMemoryChannel(server) as channel:
            yield servicers, channel
        await server.stop(None)


async def test_a_service_may_be_placed_in_memory() -> None:
    chassis = new_chassis("toy")
    async with in_memory(TOY, chassis) as (_, channel):
        assert chassis.health.names() == {"": True, SERVICE: True, INSTANCE_SERVICE: True, "model:m": True}
        assert await ScriptStub(channel).unary(b"0") == b"slept"
    assert len(chassis.background) == 0


async def test_a_call_costs_the_same_however_many_methods_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What grpc.aio waits for between two calls is one task, and not one for each method."""
    waited_for: list[int] = []
    wait = asyncio.wait

    async def counted(tasks: Any, **how: Any) -> Any:
        waited_for.append(len(tasks))
        return await wait(tasks, **how)

    monkeypatch.setattr(asyncio, "wait", counted)
    chassis, settings = new_chassis("toy"), ToySettings()
    server = new_server(TOY, settings, chassis)
    async with placed(TOY, settings, chassis, server):
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            assert await ScriptStub(channel).unary(b"0", timeout=LIMIT_SECONDS) == b"slept"
        await server.stop(None)
    assert set(waited_for) == {1}


async def test_a_drain_ends_what_the_service_ends_and_cuts_the_rest() -> None:
    drained = asyncio.Event()

    class Servicer(toy_service.ToyServicer):
        def __init__(self) -> None:
            super().__init__()
            self.both_by_hand = self._until_drained
            self.upstream = self._for_ever

        async def _until_drained(self, requests: Any, context: Any) -> None:
            await drained.wait()

        async def _for_ever(self, requests: Any, context: Any) -> None:
            await wait_for_ever()

    async def on_drain() -> None:
        drained.set()

    @asynccontextmanager
    async def build(settings: ToySettings, chassis: Chassis) -> AsyncIterator[Servicers]:
        registration = Registration(add_script_to_server, Servicer(), SERVICE)
        yield Servicers([registration], drain=on_drain)

    chassis = new_chassis("toy")
    async with in_memory(ServiceDefinition("toy", ToySettings, build), chassis) as (servicers, channel):
        long, stuck = ScriptStub(channel).both_by_hand(), ScriptStub(channel).upstream()
        await asyncio.sleep(0.01)
        assert len(chassis.calls) == 2
        await drain(servicers, chassis, 0.05, Stop())
        assert await long.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await stuck
        assert isinstance(from_rpc_error(cut.value), errors.Draining)


async def test_a_drain_of_nothing_takes_no_time() -> None:
    chassis = new_chassis("toy")
    async with in_memory(TOY, chassis) as (servicers, _), asyncio.timeout(LIMIT_SECONDS):
        await drain(servicers, chassis, 3600, Stop())


async def test_lease_counts_are_a_metric() -> None:
    chassis = new_chassis("toy")
    with chassis.leases.acquire("slot", "r"):
        assert chassis.metrics.registry.get_sample_value("weir_toy_leases", {"kind": "slot"}) == 1
    assert chassis.metrics.registry.get_sample_value("weir_toy_leases", {"kind": "slot"}) == 0
