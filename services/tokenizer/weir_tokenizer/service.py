"""The tokenizer service, from settings to servicer. The only place where its objects meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from weir.fleet.v1.instance_pb2 import Instance
from weir.tokenizer.v1 import tokenizer_pb2
from weir.tokenizer.v1.tokenizer_pb2_grpc import add_TokenizerServiceServicer_to_server
from weir_chassis.observed import Observer
from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers
from weir_tokenizer.ask_stream import AskDesk
from weir_tokenizer.encoder import Encoder
from weir_tokenizer.encoding_cache import EncodingCache
from weir_tokenizer.mapping import version_of
from weir_tokenizer.metrics import TokenizerMetrics
from weir_tokenizer.registry import load_registry
from weir_tokenizer.servicer import TokenizerServicer
from weir_tokenizer.settings import TokenizerSettings
from weir_tokenizer.work_pool import PoolLimits, WorkPool

SERVICE_NAME: Final[str] = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"].full_name


@asynccontextmanager
async def build(settings: TokenizerSettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    """Loads the models and starts the threads. Raises SettingsError for a model that cannot be served."""
    metrics = TokenizerMetrics(chassis.metrics)
    cache = EncodingCache(settings.cache_bytes, metrics.count_cache_event)
    metrics.watch(cache)

    def now() -> datetime:
        # UTC and not the machine's zone, so that all replicas render the same prompt.
        return datetime.fromtimestamp(chassis.clock.time(), UTC)

    registry = await asyncio.to_thread(load_registry, settings, cache, now)
    versions = [version_of(model.identity) for model in registry.select("")]
    chassis.identity.describe(Instance(model_versions=versions, capacity=settings.max_pending))
    limits = PoolLimits(settings.threads, settings.max_pending, settings.max_pending_bytes)
    async with WorkPool(limits, chassis.leases, chassis.clock) as pool:
        encoder = Encoder(registry, pool, metrics, chassis.clock, render_seconds=settings.render_seconds)
        desk = AskDesk(
            encoder,
            Observer(chassis.metrics, chassis.clock),
            chassis.leases,
            chassis.random,
            settings.max_open_asks,
            settings.default_deadline_seconds,
        )
        servicer = TokenizerServicer(encoder, desk, slow_consumer_seconds=settings.slow_consumer_seconds)
        yield Servicers(
            [Registration(add_TokenizerServiceServicer_to_server, servicer, SERVICE_NAME)],
            models=registry.names,
            drain=servicer.drain,
        )


SERVICE: Final = ServiceDefinition(
    "tokenizer", TokenizerSettings, build, unbounded=frozenset({f"/{SERVICE_NAME}/Encode"})
)
