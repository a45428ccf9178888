"""The model host, from settings to servicer."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from weir.executor.v1 import host_pb2
from weir.executor.v1.host_pb2_grpc import add_ModelHostServiceServicer_to_server
from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers
from weir_executor.host.model_host import ModelHost
from weir_executor.host.servicer import ModelHostServicer
from weir_executor.host.settings import ModelHostSettings

NAME: Final = host_pb2.DESCRIPTOR.services_by_name["ModelHostService"].full_name


@asynccontextmanager
async def build(settings: ModelHostSettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    host = ModelHost(settings, os.environ, chassis.clock)
    servicer = ModelHostServicer(host, settings.advertise.rpartition(":")[0])
    try:
        yield Servicers([Registration(add_ModelHostServiceServicer_to_server, servicer, NAME)])
    finally:
        await host.close()


SERVICE: Final = ServiceDefinition(
    name="model_host",
    settings=ModelHostSettings,
    build=build,
    unbounded=frozenset({f"/{NAME}/LoadModel", f"/{NAME}/UnloadModel"}),
)
