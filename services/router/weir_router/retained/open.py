"""The retained streams of a router, as its settings say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from weir.router.v1.retained_pb2 import RetainedRequest
from weir.router.v1.router_pb2 import GenerateRequest
from weir_chassis.server import Chassis
from weir_router import mapping
from weir_router.metrics import RouterMetrics
from weir_router.pipeline import Run
from weir_router.request import Caller, ClientRequest
from weir_router.retained.requests import RetainedRequests
from weir_router.retained.sharing import Alone, Sharing
from weir_router.routing import Routing
from weir_router.settings import RouterSettings


@asynccontextmanager
async def open_retained(
    settings: RouterSettings, chassis: Chassis, run: Run, routing: Routing, metrics: RouterMetrics
) -> AsyncIterator[RetainedRequests]:
    """Raises SettingsError for a REDIS_URL that is none; a server that is not there is done without."""
    async with _sharing(settings, chassis, metrics) as sharing:
        requests = RetainedRequests(
            run,
            partial(_recompose, routing),
            sharing,
            settings.retention(),
            clock=chassis.clock,
            leases=chassis.leases,
            background=chassis.background,
            metrics=metrics,
        )
        chassis.background.start(requests.sweep(), name="sweep_retained")
        try:
            yield requests
        finally:
            await requests.close()


@asynccontextmanager
async def _sharing(settings: RouterSettings, chassis: Chassis, metrics: RouterMetrics) -> AsyncIterator[Sharing]:
    if settings.redis_url is None:
        yield Alone()
        return
    from weir_router.retained.redis.made import make  # noqa: PLC0415  # its client library is no small thing

    async with make(settings, chassis, metrics) as shared:
        chassis.background.start(shared.run(), name="share_retained")
        yield shared


def _recompose(routing: Routing, record: RetainedRequest) -> ClientRequest:
    """The request as it came to another router. Where it may go is decided by what holds here and now."""
    body = record.generate if record.HasField("generate") else record.chat
    residency = routing.residency(record.tenant, body.routing.constraints.regions)
    caller = Caller(residency, record.tenant, record.subject, tuple(record.via))
    if isinstance(body, GenerateRequest):
        return mapping.from_generate(body, record.request_id, record.seed, caller)
    return mapping.from_chat(body, record.request_id, record.seed, caller)
