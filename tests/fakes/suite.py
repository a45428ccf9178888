"""A whole suite in one process: fake workers, a real router, no wire."""

from __future__ import annotations

import asyncio
from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from fakes import executor, postprocess, tokenizer
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.tokenizer import FakeTokenizer
from fakes.worker import Worker
from weir.executor.v1.executor_pb2_grpc import add_ExecutorServiceServicer_to_server
from weir.fleet.v1.instance_pb2 import Instance, Price
from weir.postprocess.v1.postprocess_pb2_grpc import add_PostprocessServiceServicer_to_server
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir.tokenizer.v1.tokenizer_pb2_grpc import add_TokenizerServiceServicer_to_server
from weir_chassis.inmemory import InMemoryServer, connector
from weir_chassis.inmemory.broker import InMemoryBus
from weir_chassis.server import Chassis, Registration, instance_registration, new_chassis, register
from weir_chassis.testing import assert_no_leases, plain_interceptor, serve_in_memory, serve_on_loopback
from weir_router.fleet.fleet import Fleet
from weir_router.fleet.views import WorkerState
from weir_router.fleet_servicer import FleetServicer
from weir_router.routing import Routing
from weir_router.service import build
from weir_router.servicer import RouterServicer
from weir_router.settings import RouterSettings

if TYPE_CHECKING:
    from weir.router.v1.router_pb2_grpc import RouterServiceAsyncStub

# Quick, so that a test which waits for a probe or a lost worker waits for little.
FAST: dict[str, Any] = {
    "load_interval_seconds": 0.02,
    "probe_timeout_seconds": 0.5,
    "reconnect_min_seconds": 0.01,
    "reconnect_max_seconds": 0.05,
    "end_wait_seconds": 0.2,
    "continuation_wait_seconds": 0.05,
}


@dataclass
class Fakes:
    """The workers, by position; `workers` serve them under `memory:executor-0` and so on."""

    executors: list[FakeExecutor]
    tokenizers: list[FakeTokenizer]
    postprocessors: list[FakePostprocess]
    workers: dict[str, Worker]

    @classmethod
    def make(
        cls, executors: list[FakeExecutor], tokenizers: list[FakeTokenizer], postprocessors: list[FakePostprocess]
    ) -> Fakes:
        workers: dict[str, Worker] = {}
        for kind, servicers, add, name in (
            ("executor", executors, add_ExecutorServiceServicer_to_server, executor.NAME),
            ("tokenizer", tokenizers, add_TokenizerServiceServicer_to_server, tokenizer.NAME),
            ("postprocess", postprocessors, add_PostprocessServiceServicer_to_server, postprocess.NAME),
        ):
            for index, servicer in enumerate(servicers):
                workers[f"{kind}-{index}"] = Worker(Registration(add, servicer, name), kind)
        return cls(executors, tokenizers, postprocessors, workers)

    def addresses(self, kind: str) -> tuple[str, ...]:
        return tuple(f"memory:{name}" for name in self.workers if name.startswith(kind))


@dataclass
class Suite:
    fakes: Fakes
    chassis: Chassis
    fleet: Fleet
    routing: Routing
    router: RouterServiceAsyncStub
    channel: grpc.aio.Channel
    drain: Callable[[], Awaitable[None]] | None

    @property
    def executor(self) -> FakeExecutor:
        return self.fakes.executors[0]

    @property
    def postprocess(self) -> FakePostprocess:
        return self.fakes.postprocessors[0]

    async def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Waits until this is so; fails when it does not become so."""
        async with asyncio.timeout(seconds):
            while not condition():  # what is waited for is not always an event
                await asyncio.sleep(0.001)

    async def until_serving(self, count: int | None = None) -> None:
        """Every worker, or so many of them, are known to serve."""
        wanted = len(self.fleet.links) if count is None else count
        await self.until(lambda: self.num_serving() == wanted)

    def num_serving(self) -> int:
        snapshot = self.fleet.snapshot()
        workers = (snapshot.executors, snapshot.tokenizers, snapshot.postprocessors)
        return sum(worker.state is WorkerState.SERVING for kind in workers for worker in kind)

    async def until_idle(self) -> None:
        """Nobody holds anything for anybody."""
        # A stream that is over is kept for a while; it goes with its router at the latest.
        await self.until(lambda: not set(self.chassis.leases.counts()) - {"retained_stream"})
        await self.until(lambda: not any(fake.live or fake.handoffs for fake in self.fakes.executors))
        await self.until(lambda: not any(fake.live for fake in self.fakes.tokenizers))
        await self.until(lambda: not any(fake.live for fake in self.fakes.postprocessors))
        snapshot = self.fleet.snapshot()
        assert not any(executor.routed_tokens for executor in snapshot.executors)
        assert not any(postprocessor.live_requests for postprocessor in snapshot.postprocessors)


@asynccontextmanager
async def suite(
    *,
    executors: list[FakeExecutor] | None = None,
    tokenizers: list[FakeTokenizer] | None = None,
    postprocessors: list[FakePostprocess] | None = None,
    loopback: bool = False,
    ready: bool = True,
    regions: Sequence[str] = (),
    bus: InMemoryBus | None = None,
    prices: Sequence[Price] = (),
    routers: dict[str, InMemoryServer] | None = None,
    own_name: str = "",
    **settings: Any,
) -> AsyncIterator[Suite]:
    """One of each unless told. Ends with every lease given back. `loopback`: the router is reached by wire.

    `regions`: of the first worker of each kind, of the second, and so on. `bus`: where the router hears of workers,
    of which it is then told nothing else. `prices`: of the executors. `routers`: those that reach each other, under
    `memory:<name>`, and this one among them under `own_name`.
    """
    fakes = Fakes.make(
        [FakeExecutor()] if executors is None else executors,
        [FakeTokenizer()] if tokenizers is None else tokenizers,
        [FakePostprocess()] if postprocessors is None else postprocessors,
    )
    for name, worker in fakes.workers.items():
        index = int(name.rpartition("-")[2])
        worker.identity.place(region=regions[index] if index < len(regions) else "")
    for index, price in enumerate(prices):
        fakes.workers[f"executor-{index}"].identity.describe(Instance(price=price))
    servers = {name: worker.server for name, worker in fakes.workers.items()}
    others = {} if routers is None else routers
    chassis = new_chassis("router", connect=connector(ChainMap(servers, others)))
    values = {**FAST, **settings}
    if bus is None:
        values["executors"] = fakes.addresses("executor")
        values["tokenizers"] = fakes.addresses("tokenizer")
        values["postprocessors"] = fakes.addresses("postprocess")
    else:
        chassis.buses.in_memory = bus.connect()
    told = RouterSettings(**values)
    async with AsyncExitStack() as stack:
        for server in servers.values():
            await server.start()
            stack.push_async_callback(server.stop, None)
        servicers = await stack.enter_async_context(build(told, chassis))
        await stack.enter_async_context(chassis.background)
        serve = serve_on_loopback if loopback else serve_in_memory
        channel = await stack.enter_async_context(serve(*servicers.registrations, health=chassis.health))
        if own_name:
            others[own_name] = own = InMemoryServer([plain_interceptor()])
            chassis.identity.place(region=told.region)
            register(own, [*servicers.registrations, instance_registration(chassis.identity)], chassis.health)
            await own.start()
            stack.push_async_callback(own.stop, None)
        servicer = servicers.registrations[0].servicer
        assert isinstance(servicer, RouterServicer)
        operators = servicers.registrations[1].servicer
        assert isinstance(operators, FleetServicer)
        stub = RouterServiceStub(channel)
        running = Suite(fakes, chassis, servicer.fleet, operators.routing, stub, channel, servicers.drain)
        if ready:
            await running.until_serving()
        yield running
        await running.until_idle()
    assert_no_leases(chassis.leases)
    assert chassis.background.failure is None, chassis.background.failure
