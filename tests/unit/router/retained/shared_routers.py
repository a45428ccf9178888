"""Routers that share their streams through one Redis, without anything else of a router."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from redis.exceptions import RedisError

from contract.retained_contract import ScriptedRuns, recompose
from servers import RedisServer
from weir_chassis.background import Background
from weir_chassis.clock import SystemClock
from weir_chassis.leases import LeaseLedger
from weir_chassis.metrics import Metrics
from weir_chassis.redis import close_client, open_client
from weir_chassis.store_link import StoreLink
from weir_chassis.testing import assert_no_leases
from weir_router.metrics import RouterMetrics
from weir_router.retained.options import RetentionLimits
from weir_router.retained.redis.logs import SharedLogs
from weir_router.retained.redis.streams import READ_ENTRIES, SharedStreams, SharingLimits
from weir_router.retained.requests import RetainedRequests

LIMITS = RetentionLimits(
    max_seconds=3600.0, default_seconds=60.0, max_streams=64, max_bytes=1 << 20, max_stream_bytes=1 << 18
)
SHARING = SharingLimits(flush=0.01, lease=20.0, timeout=5.0)


@dataclass
class Router:
    """`dies` as a process does that is killed: nothing more of it, and nothing given back."""

    requests: RetainedRequests
    shared: SharedStreams
    ledger: LeaseLedger
    metrics: Metrics
    background: Background
    dead: bool = False

    async def dies(self) -> None:
        self.dead = True
        self.shared.close = _nothing  # type: ignore[method-assign]
        await self.background.__aexit__(None, None, None)


async def _nothing() -> None:
    pass


@asynccontextmanager
async def router(
    server: RedisServer,
    pipeline: ScriptedRuns,
    *,
    name: str = "a",
    limits: RetentionLimits = LIMITS,
    sharing: SharingLimits = SHARING,
    region: str = "",
) -> AsyncIterator[Router]:
    client, clock, ledger, metrics = (
        open_client(server.url, connections=8),
        SystemClock(),
        LeaseLedger(),
        Metrics("router"),
    )
    logs = SharedLogs(client, "test", name, round(1000 * sharing.lease), READ_ENTRIES)
    link = StoreLink("retained_streams", (RedisError,), clock=clock, random=Random(1))
    router_metrics = RouterMetrics(metrics)
    shared = SharedStreams(logs, link, sharing, region=region, clock=clock, metrics=router_metrics)
    background = Background()
    requests = RetainedRequests(
        pipeline.run,
        recompose,
        shared,
        limits,
        clock=clock,
        leases=ledger,
        background=background,
        metrics=router_metrics,
    )
    made = Router(requests, shared, ledger, metrics, background)
    try:
        async with background:
            background.start(requests.sweep(), name="sweep")
            background.start(shared.run(), name="share")
            yield made
    finally:
        await requests.close()
        await close_client(client)
    assert background.failure is None, background.failure
    assert_no_leases(ledger)


def held(*routers: Router) -> Mapping[str, int]:
    return sum((Counter(each.ledger.counts()) for each in routers), Counter())
