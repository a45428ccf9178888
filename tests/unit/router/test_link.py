"""How a worker is kept connected: pauses that grow, a state that follows its health, failures that are noticed."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc
import pytest

from fakes.executor import NAME
from weir_chassis.errors import WorkerLost
from weir_chassis.health import Health
from weir_chassis.inmemory import InMemoryServer, connector
from weir_chassis.server import register
from weir_chassis.testing import VirtualClock, settle
from weir_router.fleet.link import Link, LinkContext
from weir_router.fleet.views import WorkerState
from weir_router.settings import RouterSettings


class ProbedLink(Link):
    """Its probes fail as long as it is told so."""

    kind, service = "executor", NAME

    def __init__(self, context: LinkContext):
        super().__init__("memory:worker", context)
        self.failing = True
        self.broken: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        self.probed_at: list[float] = []
        self.poll_error: grpc.StatusCode | None = None
        self.lives_seconds: float | None = None

    async def probe(self) -> None:
        self.probed_at.append(self.context.clock.monotonic())
        if self.failing:
            raise WorkerLost("not there")

    async def poll(self) -> None:
        if self.poll_error is not None:
            raise grpc.aio.AioRpcError(self.poll_error, grpc.aio.Metadata(), grpc.aio.Metadata())

    async def hold(self) -> None:
        if self.lives_seconds is not None:
            await self.context.clock.sleep(self.lives_seconds)
            raise WorkerLost("it ends every stream")
        await asyncio.shield(self.broken)


class Bench:
    def __init__(self, *, jitter: float = 1.0) -> None:
        self.clock, self.health, self.changes = VirtualClock(), Health(), list[WorkerState]()
        self.server = InMemoryServer()
        register(self.server, [], self.health)
        settings = RouterSettings().replace(
            reconnect_min_seconds=1.0, reconnect_max_seconds=4.0, no_progress_seconds=10.0
        )
        connect = connector({"worker": self.server})
        self.link = ProbedLink(LinkContext(settings, connect, self.clock, lambda: jitter, self._changed))

    async def __aenter__(self) -> Bench:
        await self.server.start()
        self.run = asyncio.create_task(self.link.run())
        await settle()
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.run.cancel()
        await asyncio.gather(self.run, return_exceptions=True)
        self.link.broken.cancel()
        await self.link.close()
        await self.server.stop(None)

    def _changed(self) -> None:
        self.changes.append(self.link.state)


@pytest.mark.parametrize(("jitter", "expected"), [(1.0, [0, 2, 6, 10, 14]), (0.0, [0, 1, 3, 5, 7])])
async def test_pauses_double_up_to_a_limit_and_are_drawn_by_half(jitter: float, expected: list[float]) -> None:
    async with Bench(jitter=jitter) as bench:
        await bench.clock.advance(expected[-1])
        assert bench.link.probed_at == expected


async def test_the_state_follows_the_workers_own_health() -> None:
    async with Bench() as bench:
        bench.link.failing = False
        await bench.clock.advance(2.0)
        assert bench.link.state is WorkerState.DRAINING, "it answers, and does not say that it serves"
        for serving in (True, False, True):
            bench.health.set(NAME, serving)
            await settle()
        bench.link.broken.set_exception(WorkerLost("the stream ended"))
        await settle()
        serves, drains, down = WorkerState.SERVING, WorkerState.DRAINING, WorkerState.DOWN
        assert bench.changes == [drains, serves, drains, serves, down]


async def test_a_worker_that_lived_is_probed_again_soon() -> None:
    async with Bench() as bench:
        bench.health.set(NAME, True)
        await bench.clock.advance(6.0)
        bench.link.failing = False
        await bench.clock.advance(8.0)
        assert bench.link.state is WorkerState.SERVING
        bench.link.broken.set_exception(WorkerLost("the stream ended"))
        await settle()
        bench.link.failing = True
        await bench.clock.advance(1.0)
        assert bench.link.probed_at[-2:] == [10.0, 15.0]


async def test_a_worker_that_comes_and_goes_within_a_moment_is_paused_for() -> None:
    async with Bench() as bench:
        bench.health.set(NAME, True)
        bench.link.failing = False
        bench.link.lives_seconds = 0.5
        await bench.clock.advance(16.0)
        assert bench.link.probed_at == [0.0, 2.0, 6.5, 11.0, 15.5]
        assert bench.changes[:4] == [WorkerState.SERVING, WorkerState.DOWN] * 2


async def test_a_worker_that_answers_no_question_is_lost_although_nobody_waits_for_it() -> None:
    async with Bench() as bench:
        bench.health.set(NAME, True)
        bench.link.failing = False
        await bench.clock.advance(2.0)
        bench.link.poll_error, bench.link.failing = grpc.StatusCode.DEADLINE_EXCEEDED, True
        await bench.clock.advance(10.0)
        assert bench.changes == [WorkerState.SERVING]
        await bench.clock.advance(2.0)
        assert bench.changes == [WorkerState.SERVING, WorkerState.DOWN]


async def test_a_worker_that_refuses_questions_is_there() -> None:
    async with Bench() as bench:
        bench.health.set(NAME, True)
        bench.link.failing = False
        bench.link.poll_error = grpc.StatusCode.UNAVAILABLE
        await bench.clock.advance(60.0)
        assert bench.link.state is WorkerState.SERVING
