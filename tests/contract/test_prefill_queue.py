"""The queue of prompts between a router and prefill workers, over a real NATS."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from servers import NatsServer, nats_server
from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.prefill_queue import CONSUMER, stream_name, subject
from weir.inference.v1.model_pb2 import ModelVersion
from weir_chassis.background import Background
from weir_chassis.clock import SystemClock
from weir_chassis.metrics import Metrics
from weir_chassis.nats import NatsConnection
from weir_executor.engine import EngineLoad
from weir_executor.handoff import jobs
from weir_executor.handoff.jobs import PrefillJobs
from weir_executor.metrics import ExecutorMetrics
from weir_executor.settings import ExecutorSettings
from weir_router.fleet.model_version import Version
from weir_router.metrics import RouterMetrics
from weir_router.prefill_queue import PrefillQueue

_NUMBERS = count()
_IDLE = EngineLoad(0, 0, 0, 8, 8, 0, 0, 0, 0.0)
_ROOM_TOKENS = 100


@dataclass
class Worker:
    """What a prefill worker says of itself."""

    address: str
    load: EngineLoad = _IDLE
    is_open: bool = True
    metrics: Metrics = field(default_factory=lambda: Metrics("executor"))

    def fill(self) -> None:
        self.load = replace(_IDLE, outstanding_prefill_tokens=_ROOM_TOKENS)

    def count(self, outcome: str) -> int:
        name = "weir_executor_prefill_jobs_total"
        return int(self.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0)


@dataclass
class Hall:
    """A queue of its own on a NATS: a router, and as many workers as the test lets in."""

    url: str
    background: Background
    version: ModelVersion = field(
        default_factory=lambda: ModelVersion(model="m", revision=f"r{next(_NUMBERS)}", tokenizer_hash="t")
    )

    def __post_init__(self) -> None:
        self.metrics = Metrics("router")
        self.router_metrics = RouterMetrics(self.metrics)

    def connect(self, name: str) -> NatsConnection:
        told = ExecutorSettings.model_validate({"model_dir": Path(), "model": "m", "nats_url": self.url})
        connection = NatsConnection(told, name, Metrics("nats"), SystemClock(), Random(0))
        self.background.start(connection.run(), name=name)
        return connection

    async def router(self, wait_seconds: float = 10.0) -> PrefillQueue:
        queue = PrefillQueue(self.connect("router"), wait_seconds, self.router_metrics, next(_NUMBERS))
        self.background.start(queue.run(), name="answer")
        await until(lambda: queue._place is not None)
        return queue

    async def let_in(self, *workers: Worker) -> None:
        for worker in workers:
            connection = self.connect(worker.address)
            taker = PrefillJobs(
                connection,
                self.version,
                worker.address,
                load=lambda worker=worker: worker.load,  # type: ignore[misc]
                is_open=lambda worker=worker: worker.is_open,  # type: ignore[misc]
                max_tokens=_ROOM_TOKENS,
                metrics=ExecutorMetrics(worker.metrics),
                clock=SystemClock(),
            )
            self.background.start(taker.run(), name=f"take-{worker.address}")
        jetstream = await self.jetstream()
        async with asyncio.timeout(20):
            while not await _pulls(jetstream, self.version):
                await asyncio.sleep(0.01)

    async def jetstream(self) -> Any:
        connection = self.connect("look")
        await until(lambda: connection.session is not None)
        assert connection.session is not None
        return connection.session.client.jetstream()

    async def assign(self, queue: PrefillQueue, *workers: Worker, tokens: int = 1) -> str | None:
        return await queue.assign(Version.of(self.version), tokens, {worker.address for worker in workers})

    def count(self, outcome: str) -> int:
        name = "weir_router_prefill_jobs_total"
        return int(self.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0)

    async def until_empty(self) -> None:
        jetstream = await self.jetstream()
        async with asyncio.timeout(10):
            while (await jetstream.stream_info(stream_name(self.version))).state.messages:
                await asyncio.sleep(0.01)


async def _pulls(jetstream: Any, version: ModelVersion) -> bool:
    from nats.js.errors import NotFoundError

    try:
        await jetstream.consumer_info(stream_name(version), CONSUMER)
    except NotFoundError:
        return False
    return True


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def hall(nats: NatsServer) -> AsyncIterator[Hall]:
    async with AsyncExitStack() as stack:
        background = await stack.enter_async_context(Background())
        yield Hall(nats.url, background)
    assert background.failure is None


async def test_each_job_goes_to_one_worker_and_all_workers_get_some(nats: NatsServer) -> None:
    async with hall(nats) as here:
        queue, workers = await here.router(), [Worker("a:1"), Worker("b:1")]
        await here.let_in(*workers)
        given = Counter(await asyncio.gather(*(here.assign(queue, *workers) for _ in range(60))))
        assert set(given) == {"a:1", "b:1"}
        assert here.count("assigned") == 60
        await here.until_empty()
        await until(lambda: [worker.count("taken") for worker in workers] == [given["a:1"], given["b:1"]])


async def test_a_worker_without_room_takes_nothing_until_it_has_some(nats: NatsServer) -> None:
    async with hall(nats) as here:
        queue, full, closed = await here.router(), Worker("a:1"), Worker("b:1", is_open=False)
        full.fill()
        await here.let_in(full, closed)
        asked = asyncio.create_task(here.assign(queue, full, closed))
        await asyncio.sleep(0.1)
        assert not asked.done()
        full.load = _IDLE
        assert await asked == "a:1"


async def test_what_is_promised_counts_until_it_has_come(nats: NatsServer) -> None:
    async with hall(nats) as here:
        queue, one, other = await here.router(), Worker("a:1"), Worker("b:1")
        await here.let_in(one, other)
        first, second = [await here.assign(queue, one, other, tokens=_ROOM_TOKENS) for _ in range(2)]
        assert {first, second} == {"a:1", "b:1"}


async def test_a_worker_that_fills_up_while_it_waits_gives_the_job_back(nats: NatsServer) -> None:
    async with hall(nats) as here:
        queue, one, other = await here.router(), Worker("a:1"), Worker("b:1")
        await here.let_in(one)
        await asyncio.sleep(0.1)  # it waits for a job
        one.fill()
        asked = asyncio.create_task(here.assign(queue, one, other))
        await until(lambda: one.count("no_room"))
        await here.let_in(other)
        assert await asked == "b:1"


async def test_a_worker_that_the_router_does_not_know_gives_the_job_back(nats: NatsServer) -> None:
    async with hall(nats) as here:
        queue, stranger, known = await here.router(), Worker("x:1"), Worker("a:1")
        await here.let_in(stranger)
        asked = asyncio.create_task(here.assign(queue, known))
        await until(lambda: stranger.count("not_known"))
        await here.let_in(known)
        assert await asked == "a:1"


async def test_a_job_that_nobody_waits_for_any_more_is_dropped(nats: NatsServer) -> None:
    async with hall(nats) as here:
        queue, hasty, worker = await here.router(), await here.router(0.05), Worker("a:1")
        worker.fill()
        await here.let_in(worker)
        assert await here.assign(hasty, worker) is None
        leaving = asyncio.create_task(here.assign(queue, worker))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert here.count("late") == 1
        worker.load = _IDLE
        await here.until_empty()
        await until(lambda: worker.count("not_wanted") == 2)
        assert worker.count("taken") == 0


async def test_a_job_of_a_worker_that_dies_goes_to_the_next(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_ACK_SECONDS", 0.3)
    async with hall(nats) as here:
        queue, worker = await here.router(), Worker("a:1", is_open=False)
        await here.let_in(worker)
        jetstream = await here.jetstream()
        dying = await jetstream.pull_subscribe_bind(CONSUMER, stream_name(here.version))
        asked = asyncio.create_task(here.assign(queue, worker))
        await dying.fetch(1, timeout=5)  # and no word of it ever
        worker.is_open = True
        assert await asked == "a:1"


async def test_no_queue_is_no_assignment_at_once(nats: NatsServer) -> None:
    async with hall(nats) as here:
        queue = await here.router()
        async with asyncio.timeout(30):  # no worker has ever been there to make it
            assert await here.assign(queue, Worker("a:1")) is None
        unconnected = PrefillQueue(here.connect("router"), 10.0, RouterMetrics(Metrics("router")), 0)
        assert await here.assign(unconnected, Worker("a:1")) is None


async def test_the_queue_comes_back_with_its_server(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with hall(server) as here:
            queue, worker = await here.router(), Worker("a:1")
            await here.let_in(worker)
            assert await here.assign(queue, worker) == "a:1"
            worker.fill()
            waiting = asyncio.create_task(here.assign(queue, worker))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(server.kill)
            assert await asyncio.wait_for(waiting, 5) is None
            assert await here.assign(queue, worker) is None
            worker.load = _IDLE
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(20):
                while await here.assign(queue, worker) != "a:1":
                    await asyncio.sleep(0.05)


async def test_what_cannot_be_read_is_dropped(nats: NatsServer) -> None:
    async with hall(nats) as here:
        queue, worker = await here.router(), Worker("a:1")
        await here.let_in(worker)
        jetstream = await here.jetstream()
        await jetstream.publish(subject(here.version), b"\xff")
        assert queue._place is not None
        await jetstream._nc.publish(queue._place.offer_subject, b"\xff")
        await here.until_empty()
        await until(lambda: worker.count("malformed") == 1)
        assert await here.assign(queue, worker) == "a:1"


def test_names_are_those_of_the_version_and_of_no_other() -> None:
    versions = [
        ModelVersion(model=m, revision=r, tokenizer_hash="t") for m, r in (("a", "bc"), ("ab", "c"), ("a.b", "*"))
    ]
    assert len({subject(version) for version in versions}) == 3
    for version in versions:
        assert not set(stream_name(version)) & set(".*> ")
        assert subject(version).startswith("weir.prefill.")
    assert pb.PrefillJob.DESCRIPTOR.fields_by_name["prompt_tokens"].number == 3
