"""Executors, postprocess replicas and tokenizers behind wires, and a router that is quick to notice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import grpc

from chaos.kill_matrix.wire import Wire, wire_to
from chaos.services import DEMO_MODEL, Service
from servers import free_ports
from weir.executor.v1.executor_pb2 import GetLoadRequest
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir_chassis.channel import open_channel

_OF_A_KIND = {"executor": 3, "postprocess": 3, "tokenizer": 2}
_LISTS = {"EXECUTORS": "executor", "POSTPROCESSORS": "postprocess", "TOKENIZERS": "tokenizer"}
# Long enough that a signal which follows a token is there before the next one.
_STEP_SECONDS = 0.04
# Shorter than what is left of a stream in its middle: it is cut off and not finished.
_DRAIN_SECONDS = 0.2
_MODELS = {"MODELS": f"demo={DEMO_MODEL}"}
_EXECUTOR = {
    "ENGINE": "fake",
    "MODEL": "demo",
    "MODEL_DIR": str(DEMO_MODEL),
    "FAKE_STEP_SECONDS": str(_STEP_SECONDS),
    "DRAIN_SECONDS": str(_DRAIN_SECONDS),
}
_ROUTER = {
    "LOAD_INTERVAL_SECONDS": "0.1",
    "PROBE_TIMEOUT_SECONDS": "0.5",
    "NO_PROGRESS_SECONDS": "1",
    "RECONNECT_MIN_SECONDS": "0.05",
    "RECONNECT_MAX_SECONDS": "0.3",
    # Here workers die more often than anywhere.
    "RETRY_BUDGET_FLOOR": "10000",
    "MAX_CONTINUATIONS": "20",
}


class Fault(Enum):
    KILL = "kill -9"
    STOP = "SIGSTOP"
    TERM = "SIGTERM"
    CUT = "cut"


@dataclass
class Fleet:
    router: Service
    workers: list[Service]
    # To each of the workers, by its port.
    wires: dict[int, Wire]
    # Past the wires.
    channels: dict[int, grpc.aio.Channel]
    # Struck by a stop and not healed yet.
    held_still: Service | None = None

    def of_kind(self, kind: str) -> list[Service]:
        return [worker for worker in self.workers if worker.name == kind]

    async def holder(self, kind: str) -> Service:
        """The worker of this kind that holds a request, as soon as there is one."""
        while True:
            workers = [worker for worker in self.of_kind(kind) if not worker.has_ended]
            held = await asyncio.gather(*map(self._holds, workers))
            if any(held):
                return workers[held.index(True)]

    async def _holds(self, worker: Service) -> bool:
        try:
            if worker.name == "executor":
                stub = ExecutorServiceStub(self.channels[worker.port])
                return (await stub.GetLoad(GetLoadRequest(), timeout=0.5)).live_requests > 0
            return await worker.leases() > 0
        except (grpc.RpcError, OSError):
            return False  # it is on its way back

    @contextmanager
    def stopped(self, kind: str) -> Iterator[list[Service]]:
        """All workers of this kind, which do nothing meanwhile."""
        workers = self.of_kind(kind)
        for worker in workers:
            worker.signal(signal.SIGSTOP)
        try:
            yield workers
        finally:
            for worker in workers:
                if worker is not self.held_still:
                    worker.signal(signal.SIGCONT)

    def strike(self, worker: Service, fault: Fault) -> None:
        match fault:
            case Fault.KILL:
                worker.signal(signal.SIGKILL)
            case Fault.STOP:
                self.held_still = worker
                worker.signal(signal.SIGSTOP)
            case Fault.TERM:
                worker.signal(signal.SIGTERM)
            case Fault.CUT:
                self.wires[worker.port].cut()

    async def heal(self, worker: Service, fault: Fault) -> None:
        """It is on its way back: another process, where there is none any more."""
        if fault is Fault.STOP:
            self.held_still = None
            worker.signal(signal.SIGCONT)
        if fault in (Fault.KILL, Fault.TERM):
            await worker.wait()
            worker.start()

    async def until_held_by_nobody(self) -> float:
        """Returns the leases that are left after a while: 0, or what is wrong."""
        left = 0.0
        for _ in range(200):
            left = sum(await asyncio.gather(*map(_left, [self.router, *self.workers])))
            if not left:
                break
            await asyncio.sleep(0.02)
        return left

    async def until_known(self, kind: str, count: int) -> None:
        """So many workers of this kind are known to the router."""
        name = f'weir_router_healthy_workers{{kind="{kind}"}}'
        while (await self.router.metrics()).get(name, 0) < count:
            await asyncio.sleep(0.02)


async def _left(service: Service) -> float:
    try:
        return 0.0 if service.has_ended else await service.leases()
    except OSError:
        return 0.0  # a process that has just been started holds nothing


@asynccontextmanager
async def running_fleet(directory: Path) -> AsyncIterator[Fleet]:
    """All of them serve, and the router knows it."""
    ports = iter(free_ports(2 * (sum(_OF_A_KIND.values()) + 1)))

    def service(name: str, settings: dict[str, str]) -> Service:
        port = next(ports)
        made = Service(name, port, next(ports), settings, directory / f"{name}-{port}.log")
        stack.callback(made.end)
        made.start()
        return made

    async with AsyncExitStack() as stack:
        text = {**_MODELS, "DRAIN_SECONDS": str(_DRAIN_SECONDS)}
        settings = {"executor": _EXECUTOR, "postprocess": text, "tokenizer": text}
        workers = [service(kind, settings[kind]) for kind, count in _OF_A_KIND.items() for _ in range(count)]
        wires = {worker.port: await stack.enter_async_context(wire_to(worker.port)) for worker in workers}
        addresses = {
            name: ",".join(wires[worker.port].address for worker in workers if worker.name == kind)
            for name, kind in _LISTS.items()
        }
        router = service("router", {**_ROUTER, **addresses})
        channels = {each.port: await stack.enter_async_context(open_channel(each.address)) for each in workers}
        fleet = Fleet(router, workers, wires, channels)
        for each in (*workers, router):
            await each.until_serving()
        for kind, count in _OF_A_KIND.items():
            await fleet.until_known(kind, count)
        yield fleet
