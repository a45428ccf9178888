"""The postprocess service, from settings to servicer. The only place where its objects meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from weir.fleet.v1.instance_pb2 import Instance
from weir.inference.v1.model_pb2 import ModelVersion
from weir.postprocess.v1 import postprocess_pb2
from weir.postprocess.v1.postprocess_pb2_grpc import add_PostprocessServiceServicer_to_server
from weir_chassis.errors import WeirError
from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers
from weir_chassis.settings import SettingsError
from weir_chassis.telemetry import get_logger
from weir_postprocess.loader import load_vocabulary
from weir_postprocess.servicer import PostprocessServicer, StreamLimits
from weir_postprocess.settings import PostprocessSettings
from weir_postprocess.vocabulary import Vocabulary

SERVICE_NAME: Final[str] = postprocess_pb2.DESCRIPTOR.services_by_name["PostprocessService"].full_name


@asynccontextmanager
async def build(settings: PostprocessSettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    """Loads the vocabularies. Raises SettingsError for a directory whose tokenizer cannot be served."""
    vocabularies = await asyncio.to_thread(_load, settings.models)
    info = chassis.metrics.gauge("model_info", "The tokenizer of each model", ("model", "tokenizer_hash"))
    for model, vocabulary in vocabularies.items():
        info.labels(model, vocabulary.tokenizer_hash).set(1)
        get_logger().info("model_loaded", model=model, tokenizer_hash=vocabulary.tokenizer_hash, tokens=len(vocabulary))
    versions = [ModelVersion(model=name, tokenizer_hash=each.tokenizer_hash) for name, each in vocabularies.items()]
    chassis.identity.describe(Instance(model_versions=versions, capacity=settings.max_open_requests))
    limits = StreamLimits(settings.max_open_requests, settings.slow_consumer_seconds)
    servicer = PostprocessServicer(vocabularies, limits, chassis.leases, chassis.metrics)
    yield Servicers(
        [Registration(add_PostprocessServiceServicer_to_server, servicer, SERVICE_NAME)],
        models=list(vocabularies),
        drain=servicer.drain,
    )


def _load(models: Mapping[str, Path]) -> Mapping[str, Vocabulary]:
    vocabularies: dict[str, Vocabulary] = {}
    for model, directory in models.items():
        try:
            vocabularies[model] = load_vocabulary(directory)
        except WeirError as error:
            raise SettingsError(f"WEIR_POSTPROCESS_MODELS: {model}: {error.message}") from error
    return vocabularies


SERVICE: Final = ServiceDefinition(
    "postprocess", PostprocessSettings, build, unbounded=frozenset({f"/{SERVICE_NAME}/Postprocess"})
)
