"""The router's objects, made in order and closed in reverse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from weir.router.v1.router_pb2 import DESCRIPTOR
from weir.router.v1.router_pb2_grpc import add_RouterServiceServicer_to_server
from weir_chassis.nats import connect_nats
from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers
from weir_router.admission import Admission, AdmissionQueue
from weir_router.detector import Detector
from weir_router.embedder import Embedder
from weir_router.encoder import Encoder
from weir_router.fleet import open_fleet
from weir_router.metrics import RouterMetrics
from weir_router.pipeline import Limits, Pipeline
from weir_router.prefill_queue import PrefillQueue
from weir_router.servicer import RouterServicer
from weir_router.settings import RouterSettings

NAME = DESCRIPTOR.services_by_name["RouterService"].full_name


@asynccontextmanager
async def build(settings: RouterSettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    """Serves as soon as it can answer, if only with NO_WORKER: the fleet comes and goes beside it."""
    metrics = RouterMetrics(chassis.metrics)
    queue = AdmissionQueue(settings.max_running, settings.max_waiting)
    admission = Admission(queue, chassis.clock, chassis.leases, metrics)
    limits = Limits(settings.max_pending_tokens, settings.end_wait_seconds, settings.disaggregate_tokens)
    async with open_fleet(settings, chassis, metrics) as fleet:
        encoder = Encoder(fleet, settings.tokenizer_timeout_seconds, settings.cache_pools)
        pipeline = Pipeline(
            fleet=fleet,
            prefill_queue=_join_prefill_queue(settings, chassis, metrics),
            admission=admission,
            encoder=encoder,
            limits=limits,
            clock=chassis.clock,
            leases=chassis.leases,
            metrics=metrics,
        )
        embedder = Embedder(
            fleet=fleet,
            admission=admission,
            encoder=encoder,
            clock=chassis.clock,
            leases=chassis.leases,
            metrics=metrics,
        )
        detector = Detector(fleet=fleet, admission=admission, encoder=encoder, clock=chassis.clock, metrics=metrics)
        servicer = RouterServicer(pipeline, embedder, detector, fleet, chassis.random)
        yield Servicers([Registration(add_RouterServiceServicer_to_server, servicer, NAME)])


def _join_prefill_queue(settings: RouterSettings, chassis: Chassis, metrics: RouterMetrics) -> PrefillQueue | None:
    connection = connect_nats(settings, chassis)
    if connection is None:
        return None
    queue = PrefillQueue(connection, settings.prefill_queue_seconds, metrics, nonce=chassis.random.getrandbits(64))
    chassis.background.start(queue.run(), name="answer_offers")
    return queue


SERVICE = ServiceDefinition(name="router", settings=RouterSettings, build=build)
