"""A fleet that changes, as real processes: a router that was told of nothing but a NATS server, and fake workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from chaos.churn.fleet import Death, Worker, start_python
from e2e.conftest import run_weir
from servers import NatsServer, free_ports, nats_server
from weir.fleet.v1.instance_pb2 import INSTANCE_KIND_ROUTER
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.router.v1 import fleet_pb2 as pb
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir_chassis.channel import open_channel
from weir_client.answer import Answer, collect
from weir_client.client import Client

_PATIENCE_SECONDS = 60.0
_LEASE_SECONDS = "1"
_STREAM = StoppingConditions(max_tokens=60, ignore_eos=True)


@dataclass
class Fleet:
    nats: NatsServer
    router: str
    executors: list[Worker]
    others: list[Worker]

    async def get(self) -> pb.GetFleetResponse:
        async with open_channel(self.router) as channel:
            return await FleetServiceStub(channel).GetFleet(pb.GetFleetRequest(), timeout=10, wait_for_ready=True)

    async def until(self, condition: Callable[[pb.GetFleetResponse], bool]) -> None:
        seen = pb.GetFleetResponse()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while not condition(seen := await self.get()):
                    await asyncio.sleep(0.05)
        except (TimeoutError, grpc.aio.AioRpcError):
            raise AssertionError(f"the fleet did not become so: {seen}") from None

    async def until_whole(self) -> None:
        wanted = {worker.address for worker in (*self.executors, *self.others)}
        await self.until(lambda seen: serving(seen) == wanted and not seen.problems)


def workers_of(seen: pb.GetFleetResponse) -> list[pb.Worker]:
    """Without the router, which announces itself too, and those that have left."""
    return [one for one in seen.workers if one.source and one.instance.kind != INSTANCE_KIND_ROUTER]


def serving(seen: pb.GetFleetResponse) -> set[str]:
    return {one.instance.address for one in workers_of(seen) if one.state == pb.WORKER_STATE_SERVING}


def known(seen: pb.GetFleetResponse, worker: Worker) -> pb.Worker | None:
    return next((one for one in seen.workers if one.instance.address == worker.address), None)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The router runs, and nobody else yet."""
    directory = tmp_path_factory.mktemp("fleet")
    with nats_server(directory / "nats") as nats, processes(directory, nats) as running:
        yield running


@contextmanager
def processes(directory: Path, nats: NatsServer) -> Iterator[Fleet]:
    router_port, *ports = free_ports(5)
    told = {"NATS_URL": nats.url, "ANNOUNCE_LEASE_SECONDS": _LEASE_SECONDS, "REGION": "eu-west", "DRAIN_SECONDS": "30"}
    kinds = ["executor", "executor", "tokenizer", "postprocess"]
    workers = [
        Worker(kind, port, directory / f"{kind}-{port}.log", told) for kind, port in zip(kinds, ports, strict=True)
    ]
    with ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.end)
        env = {"WEIR_ROUTER_NATS_URL": nats.url, "WEIR_ROUTER_PORT": str(router_port)}
        process = start_python("weir_router", env, directory / "router.log")
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield Fleet(nats, f"127.0.0.1:{router_port}", workers[:2], workers[2:])


async def stream(client: Client) -> Answer:
    return await collect(client.generate("a prompt that is drawn again", stopping=_STREAM, timeout=60))


@asynccontextmanager
async def traffic(client: Client, streams: int) -> AsyncIterator[list[Answer]]:
    """So many streams at any time; each is to end well."""
    answers: list[Answer] = []

    async def keep_asking() -> None:
        while not over.is_set():
            answers.append(await stream(client))

    over = asyncio.Event()
    tasks = [asyncio.create_task(keep_asking()) for _ in range(streams)]
    try:
        yield answers
    finally:
        over.set()
        await asyncio.gather(*tasks)
    assert answers
    assert {answer.usage.completion_tokens for answer in answers} == {_STREAM.max_tokens}


async def test_a_router_that_was_told_of_nobody_finds_the_workers_that_come_later(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.until(lambda seen: len(seen.problems) == 3)
    for worker in (*fleet.executors, *fleet.others):
        worker.start(time.monotonic())
    await fleet.until_whole()
    seen = await fleet.get()
    assert {(one.source, one.instance.region) for one in workers_of(seen)} == {("announced", "eu-west")}
    async with Client(fleet.router) as client:
        assert (await stream(client)).usage.completion_tokens == _STREAM.max_tokens
    said = run_weir(tmp_path, "fleet", "--router", fleet.router)
    assert said.returncode == 0, said.stderr
    assert all(worker.address in said.stdout for worker in fleet.executors)


async def test_a_router_that_was_told_of_names_only_finds_all_behind_them(fleet: Fleet, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    names = [f"dns:///localhost:{worker.port}" for worker in (*fleet.executors, *fleet.others)]
    env = {"PORT": str(port), "EXECUTORS": ",".join(names[:2]), "TOKENIZERS": names[2], "POSTPROCESSORS": names[3]}
    process = start_python(
        "weir_router", {f"WEIR_ROUTER_{name}": value for name, value in env.items()}, tmp_path / "router.log"
    )
    try:
        other = Fleet(fleet.nats, f"127.0.0.1:{port}", fleet.executors, fleet.others)
        await other.until(lambda seen: {worker.address for worker in other.executors} <= serving(seen))
        assert {one.source for one in workers_of(await other.get())} == {"dns"}
        async with Client(other.router) as client:
            await stream(client)
    finally:
        process.kill()
        process.wait()


async def test_a_killed_worker_is_gone_and_its_successor_is_found(fleet: Fleet) -> None:
    victim = fleet.executors[0]
    victim.die(Death.KILL, time.monotonic())
    await fleet.until(lambda seen: known(seen, victim) is None)
    async with Client(fleet.router) as client:
        await stream(client)
    victim.end()
    victim.start(time.monotonic())
    await fleet.until_whole()


async def test_a_worker_that_drains_finishes_its_streams_and_gets_nothing_new(fleet: Fleet) -> None:
    leaving, staying = fleet.executors
    async with Client(fleet.router) as client, traffic(client, streams=4) as answers:
        await fleet.until(lambda seen: (one := known(seen, leaving)) is not None and one.routed_requests > 0)
        leaving.die(Death.DRAIN, time.monotonic())
        await fleet.until(lambda seen: (one := known(seen, leaving)) is None or one.state != pb.WORKER_STATE_SERVING)
        count = len(answers)
        await fleet.until(lambda seen: known(seen, leaving) is None)
        assert leaving.process is not None
        assert await asyncio.to_thread(leaving.process.wait, 30) == 0
        await fleet.until(lambda _: len(answers) >= count + 8)
        assert {answer.receipt.worker for answer in answers[count + 4 :]} == {staying.address}
    leaving.start(time.monotonic())
    await fleet.until_whole()


async def test_nats_is_restarted_under_traffic_and_no_request_fails(fleet: Fleet) -> None:
    newcomer = fleet.executors[1]
    async with Client(fleet.router) as client, traffic(client, streams=4) as answers:
        fleet.nats.stop()
        await fleet.until(lambda seen: any("the broker" in problem for problem in seen.problems))
        count, lapsed_at = len(answers), time.monotonic() + 2 * float(_LEASE_SECONDS)
        await fleet.until(lambda _: time.monotonic() > lapsed_at and len(answers) > count)
        seen = await fleet.get()
        assert len(serving(seen)) == 4, "who answers is there"
        fleet.nats.start()
        await fleet.until_whole()
    newcomer.die(Death.KILL, time.monotonic())
    newcomer.end()
    newcomer.start(time.monotonic())
    await fleet.until_whole()
