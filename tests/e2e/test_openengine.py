"""Engines in processes of their own that speak openengine.v1: killed, stopped, started anew, of another version."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from chaos.services import DEMO_MODEL, Service, until_async
from contract.router_contract import Answer
from e2e.conftest import until_idle
from servers import free_ports
from weir.inference.v1.routing_pb2 import CONTINUATION_MODE_BEST_EFFORT, CONTINUATION_MODE_EXACT, ContinuationMode
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1.router_pb2 import GenerateRequest
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.errors import reason_name
from weir_chassis.status import from_rpc_error
from weir_client.client import Client

_TESTS = Path(__file__).parents[1]
_TOKENS = 60
_STALL_SECONDS = 3.0


@dataclass
class Double:
    """One address, at which one process comes after another."""

    port: int = 0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, *revision: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fakes.openengine", str(DEMO_MODEL), "demo", str(self.port), *revision],
            env=os.environ | {"PYTHONPATH": str(_TESTS)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said, "the double has ended"
        self.port = int(said.rpartition(":")[2])

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


@dataclass
class World:
    """Two doubles, an executor before each, and the rest of the suite."""

    doubles: list[Double]
    executors: list[Service]
    router: Service

    def double_behind(self, worker: str) -> Double:
        return self.doubles[[each.address for each in self.executors].index(worker)]

    async def until_healthy(self, count: int) -> None:
        """As far as the router knows."""
        async with Client(self.router.address) as client:

            async def is_so() -> bool:
                return sum(model.healthy_workers for model in await client.models()) == count

            await until_async(is_so)


def _service(name: str, folder: Path, settings: Mapping[str, str]) -> Service:
    port, metrics_port = free_ports(2)
    return Service(name, port, metrics_port, settings, folder / f"{name}-{port}.log")


def _executor(folder: Path, double: Double) -> Service:
    told = {
        "MODEL": "demo",
        "MODEL_DIR": str(DEMO_MODEL),
        "ENGINE": "openengine",
        "OPENENGINE_ADDRESS": double.address,
        "OPENENGINE_STALL_SECONDS": str(_STALL_SECONDS),
        "OPENENGINE_CALL_SECONDS": "1",
    }
    return _service("executor", folder, told)


@asynccontextmanager
async def running_world(folder: Path) -> AsyncIterator[World]:
    doubles = [Double(), Double()]
    named = {"MODELS": f"demo={DEMO_MODEL}"}
    ends = [_service("tokenizer", folder, named), _service("postprocess", folder, named)]
    try:
        for double in doubles:
            double.start()
        executors = [_executor(folder, double) for double in doubles]
        settings = {
            "TOKENIZERS": ends[0].address,
            "POSTPROCESSORS": ends[1].address,
            "EXECUTORS": ",".join(each.address for each in executors),
        }
        router = _service("router", folder, settings)
        services = [*ends, *executors, router]
        try:
            for service in services:
                service.start()
            await asyncio.gather(*(service.until_serving() for service in services))
            world = World(doubles, executors, router)
            await world.until_healthy(2)
            yield world
        finally:
            for service in services:
                service.end()
    finally:
        for double in doubles:
            double.end()


def _request(mode: ContinuationMode.ValueType = CONTINUATION_MODE_BEST_EFFORT) -> GenerateRequest:
    stopping = StoppingConditions(max_tokens=_TOKENS, ignore_eos=True)
    request = GenerateRequest(text="Once upon a time", sampling=SamplingParameters(temperature=0), stopping=stopping)
    request.routing.continuation = mode
    return request


async def _asked(world: World, request: GenerateRequest, *, meanwhile: int | None = None) -> tuple[Answer, Double]:
    """The answer, and the double that drew its first tokens: it was sent the signal `meanwhile` in mid-stream."""
    answer, begun = Answer(), None
    async with open_channel(world.router.address) as channel:
        stub: Any = RouterServiceStub(channel)
        async for event in stub.Generate(request, timeout=60):
            answer.add(event)
            if event.HasField("delta") and begun is None:
                begun = await _busy(world)
                if meanwhile is not None:
                    begun.signal(meanwhile)
    assert begun is not None
    return answer, begun


async def _busy(world: World) -> Double:
    loads = [await each.leases() for each in world.executors]
    (index,) = (index for index, load in enumerate(loads) if load)
    return world.doubles[index]


async def test_an_engine_that_dies_or_stands_still_in_mid_stream_is_gone_on_from_elsewhere(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        wanted, _ = await _asked(world, _request())
        wanted.check_complete()
        assert wanted.usage.completion_tokens == _TOKENS

        answer, killed = await _asked(world, _request(), meanwhile=signal.SIGKILL)
        _is_whole(answer, wanted)
        await world.until_healthy(1)

        killed.end()
        killed.start()
        await world.until_healthy(2)

        answer, stopped = await _asked(world, _request(), meanwhile=signal.SIGSTOP)
        _is_whole(answer, wanted)
        await world.until_healthy(1)

        stopped.signal(signal.SIGCONT)
        await world.until_healthy(2)
        _, lost = await _asked_exactly(world)
        lost.end()
        lost.start()
        await world.until_healthy(2)
        await until_idle([each.address for each in world.executors])

        for double in world.doubles:
            double.end()
        await world.until_healthy(0)
        with pytest.raises(grpc.RpcError) as caught:
            await _asked(world, _request())
        assert from_rpc_error(caught.value).row.retryable
        assert not any(each.has_ended for each in world.executors), "an executor without its engine waits for it"


def _is_whole(answer: Answer, wanted: Answer) -> None:
    """Greedy tokens, so they are the same; a server of which nobody knows how it draws cannot promise that."""
    answer.check_complete()
    assert (answer.token_ids, answer.texts) == (wanted.token_ids, wanted.texts)
    assert (answer.continued.reason, answer.continued.exact) == ("WORKER_LOST", False)
    assert len(set(answer.receipt.workers)) == 2


async def _asked_exactly(world: World) -> tuple[grpc.RpcError, Double]:
    """Whoever does not want another's draws is told that they can begin anew."""
    begun: list[Double] = []

    async def kill() -> None:
        begun.append(await _busy(world))
        begun[0].signal(signal.SIGKILL)

    with pytest.raises(grpc.RpcError) as caught:
        async with open_channel(world.router.address) as channel:
            stub: Any = RouterServiceStub(channel)
            async for event in stub.Generate(_request(CONTINUATION_MODE_EXACT), timeout=60):
                if event.HasField("delta") and not begun:
                    await kill()
    error = from_rpc_error(caught.value)
    assert (reason_name(error.reason), error.row.retryable) == ("WORKER_LOST", True)
    return caught.value, begun[0]


async def test_an_engine_of_another_version_ends_the_executors_start_in_one_line(tmp_path: Path) -> None:
    double = Double()
    double.start("2")
    executor = _executor(tmp_path, double)
    try:
        executor.start()
        assert await executor.wait() == 2
    finally:
        executor.end()
        double.end()
    said = executor.log.read_text()
    assert f"WEIR_EXECUTOR_OPENENGINE_ADDRESS='{double.address}': its schema_revision is 2; 1 is known here" in said
    assert "Traceback" not in said
