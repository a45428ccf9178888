"""The contract of retained streams, kept by one router, and by two that share theirs through a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from contract import retained_contract
from contract.retained_contract import Check, Place, ScriptedRuns, recompose
from servers import RedisServer, redis_server
from unit.router.retained.shared_routers import LIMITS, held, router
from weir_chassis.background import Background
from weir_chassis.clock import SystemClock
from weir_chassis.leases import LeaseLedger
from weir_chassis.metrics import Metrics
from weir_chassis.testing import assert_no_leases
from weir_router.metrics import RouterMetrics
from weir_router.retained.requests import RetainedRequests
from weir_router.retained.sharing import Alone

CHECKS = pytest.mark.parametrize(
    "check", retained_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)


@asynccontextmanager
async def one_router() -> AsyncIterator[Place]:
    pipeline, ledger, background = ScriptedRuns(), LeaseLedger(), Background()
    requests = RetainedRequests(
        pipeline.run,
        recompose,
        Alone(),
        LIMITS,
        clock=SystemClock(),
        leases=ledger,
        background=background,
        metrics=RouterMetrics(Metrics("router")),
    )
    async with background:
        background.start(requests.sweep(), name="sweep")
        yield Place(requests, requests, pipeline, ledger.counts)
    await requests.close()
    assert background.failure is None
    assert_no_leases(ledger)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@CHECKS
async def test_one_router(check: Check) -> None:
    async with one_router() as at:
        await check(at)


@CHECKS
async def test_two_routers_that_share(check: Check, server: RedisServer) -> None:
    server.command("FLUSHALL")
    pipeline = ScriptedRuns()
    async with router(server, pipeline, name="a") as a, router(server, pipeline, name="b") as b:
        await check(Place(a.requests, b.requests, pipeline, lambda: held(a, b)))
