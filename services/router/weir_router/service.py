"""The router's objects, made in order and closed in reverse."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from weir.router.v1 import fleet_pb2
from weir.router.v1.fleet_pb2_grpc import add_FleetServiceServicer_to_server
from weir.router.v1.router_pb2 import DESCRIPTOR
from weir.router.v1.router_pb2_grpc import add_RouterServiceServicer_to_server
from weir_chassis.followed_file import FollowedFile, reread_on_hangup
from weir_chassis.metrics import Metrics
from weir_chassis.nats import connect_nats
from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers
from weir_router.admission import Admission, AdmissionQueue
from weir_router.detector import Detector
from weir_router.dispatch import Dispatch, ExecutionLimits
from weir_router.embedder import Embedder
from weir_router.encoder import Encoder
from weir_router.ensembles.ensembles import Ensembles
from weir_router.explanation import Explainer
from weir_router.faults.budget import RetryBudget
from weir_router.faults.retries import Retries
from weir_router.fleet.fleet import open_fleet
from weir_router.fleet.model_hosts import ModelHosts
from weir_router.fleet_servicer import FleetServicer
from weir_router.metrics import RouterMetrics
from weir_router.models.judging import Judging
from weir_router.models.metrics import ModelMetrics
from weir_router.models.models import Models
from weir_router.models.shadow import Shadows
from weir_router.operations.operations import Operations
from weir_router.pipeline import Limits, Pipeline
from weir_router.prefill_queue import PrefillQueue
from weir_router.prefixes.feed import PrefixFeed
from weir_router.prefixes.index import PrefixIndex
from weir_router.prefixes.prefixes import Prefixes
from weir_router.prefixes.routed import RoutedPrefixes
from weir_router.retained.open import open_retained
from weir_router.routing import Routing
from weir_router.routing_config import parse
from weir_router.servicer import RouterServicer
from weir_router.settings import RouterSettings

FLEET_NAME = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"].full_name
# Long enough that what one worker lost is paid for by many requests, short enough to follow a change of load.
_BUDGET_SECONDS = 60.0
# At once, of all aliases together: beyond what their own budgets should ever allow.
_MAX_SHADOWS = 1000

NAME = DESCRIPTOR.services_by_name["RouterService"].full_name


@asynccontextmanager
async def build(settings: RouterSettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    """Serves as soon as it can answer, if only with NO_WORKER: the fleet comes and goes beside it."""
    metrics = RouterMetrics(chassis.metrics)
    queue = AdmissionQueue(settings.max_running, settings.max_waiting)
    admission = Admission(queue, chassis.clock, chassis.leases, metrics)
    limits = Limits(settings.max_pending_tokens, settings.journal_tokens, settings.end_wait_seconds)
    async with open_fleet(settings, chassis, metrics) as fleet:
        prefixes = Prefixes(PrefixIndex(settings.prefix_blocks, metrics.note_prefixes), RoutedPrefixes())
        routing = Routing(
            fleet, settings.routing(), prefixes, chassis.clock, first_turn=lambda: chassis.random.getrandbits(32)
        )
        feed = PrefixFeed(fleet, prefixes, connect_nats(settings, chassis), chassis, routing.weighs_prefixes)
        chassis.background.start(feed.run(), name="feed_prefixes")
        budget = RetryBudget(settings.retry_budget_share, settings.retry_budget_floor, _BUDGET_SECONDS)
        retries = Retries(budget, chassis.clock, metrics)
        encoder = Encoder(fleet, retries, settings.cache_pools)
        models, model_metrics = Models(routing, encoder, chassis.clock), ModelMetrics(chassis.metrics)
        dispatch = Dispatch(
            routing=routing,
            prefill_queue=_join_prefill_queue(settings, chassis, metrics),
            retries=retries,
            limits=ExecutionLimits(
                settings.disaggregate_tokens, settings.max_continuations, settings.continuation_wait_seconds
            ),
            metrics=metrics,
        )
        judging = Judging(routing, chassis.clock, model_metrics)
        pipeline = Pipeline(
            dispatch=dispatch,
            admission=admission,
            models=models,
            judging=judging,
            limits=limits,
            clock=chassis.clock,
            leases=chassis.leases,
            metrics=metrics,
        )
        shadows = Shadows(
            pipeline.run,
            _aside(dispatch, models, judging, limits, chassis).run,
            routing,
            clock=chassis.clock,
            background=chassis.background,
            metrics=model_metrics,
        )
        embedder = Embedder(
            routing=routing,
            admission=admission,
            models=models,
            encoder=encoder,
            retries=retries,
            clock=chassis.clock,
            leases=chassis.leases,
            metrics=metrics,
        )
        detector = Detector(
            routing=routing,
            admission=admission,
            models=models,
            encoder=encoder,
            retries=retries,
            clock=chassis.clock,
            metrics=metrics,
        )
        operations = Operations(
            chassis.background,
            chassis.connect,
            lambda: f"{chassis.random.getrandbits(64):016x}",
            max_seconds=settings.operation_seconds,
        )
        explainer = Explainer(routing, models, settings.disaggregate_tokens, chassis.clock)
        hosts = ModelHosts(settings.model_hosts, chassis.connect)
        fleet_servicer = FleetServicer(routing, explainer, operations, hosts)
        async with open_retained(settings, chassis, shadows.run, routing, metrics) as requests:
            ensembles = Ensembles(shadows.run, chassis.clock)
            servicer = RouterServicer(requests, embedder, detector, routing, chassis.random, ensembles=ensembles)
            with _followed(settings, routing, chassis):
                yield Servicers(
                    [
                        Registration(add_RouterServiceServicer_to_server, servicer, NAME),
                        Registration(add_FleetServiceServicer_to_server, fleet_servicer, FLEET_NAME),
                    ],
                    drain=requests.drain,
                )


@contextmanager
def _followed(settings: RouterSettings, routing: Routing, chassis: Chassis) -> Iterator[None]:
    """The routing file, where there is one, holds as it changes."""
    if settings.config_file is None:
        yield
        return
    file = FollowedFile(settings.config_file, parse, routing.config, routing.apply)
    chassis.background.start(
        file.follow(chassis.clock, poll_seconds=settings.config_poll_seconds), name="follow_config"
    )
    with reread_on_hangup(file):
        yield


def _aside(dispatch: Dispatch, models: Models, judging: Judging, limits: Limits, chassis: Chassis) -> Pipeline:
    """A pipeline for shadows: its places, its tries and what it counts are no client's."""
    metrics = RouterMetrics(Metrics("router"))
    retries = Retries(RetryBudget(0.0, 0, _BUDGET_SECONDS), chassis.clock, metrics)
    return Pipeline(
        dispatch=replace(dispatch, retries=retries, metrics=metrics),
        admission=Admission(AdmissionQueue(_MAX_SHADOWS, 0), chassis.clock, chassis.leases, metrics),
        models=models,
        judging=judging,
        limits=limits,
        clock=chassis.clock,
        leases=chassis.leases,
        metrics=metrics,
    )


def _join_prefill_queue(settings: RouterSettings, chassis: Chassis, metrics: RouterMetrics) -> PrefillQueue | None:
    connection = connect_nats(settings, chassis)
    if connection is None:
        return None
    queue = PrefillQueue(connection, settings.prefill_queue_seconds, metrics, nonce=chassis.random.getrandbits(64))
    chassis.background.start(queue.run(), name="answer_offers")
    return queue


SERVICE = ServiceDefinition(
    name="router",
    settings=RouterSettings,
    build=build,
    unbounded=frozenset({f"/{FLEET_NAME}/WatchOperation"}),
)
