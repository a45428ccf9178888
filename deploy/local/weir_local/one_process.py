"""The same servicers in this process, over in-memory channels; only the router listens on a socket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from time import monotonic
from typing import Any

from weir_chassis import server as chassis_server
from weir_chassis.fleet.announcer import announced
from weir_chassis.inmemory import InMemoryServer, connector
from weir_chassis.inmemory.broker import InMemoryBus
from weir_chassis.server import Chassis, ServiceDefinition
from weir_chassis.settings import ServiceSettings
from weir_chassis.stopping import Stop
from weir_client.stack import RunningService
from weir_local.placement import PlannedService

# Statuses of calls that were cut still have to leave before the connection closes.
_FLUSH_SECONDS = 1.0


@asynccontextmanager
async def started(
    plans: list[PlannedService], on_ready: Callable[[PlannedService, float], None]
) -> AsyncIterator[list[RunningService]]:
    """All services built in order, the router last. Leaving drains and closes them in reverse."""
    servers: dict[str, InMemoryServer] = {}
    bus = InMemoryBus()
    async with AsyncExitStack() as stack:
        for plan in plans:
            began = monotonic()
            await stack.enter_async_context(_placed(plan, servers, bus))
            on_ready(plan, monotonic() - began)
        yield [RunningService(plan.service, plan.address, os.getpid()) for plan in plans if plan.service == "router"]


@asynccontextmanager
async def _placed(plan: PlannedService, servers: dict[str, InMemoryServer], bus: InMemoryBus) -> AsyncIterator[None]:
    """One service of its own chassis: its own metrics, books, health and tasks, as in a process of its own."""
    service: ServiceDefinition[Any] = import_module(f"weir_{plan.service}.service").SERVICE
    settings = service.settings.model_validate(dict(plan.settings))
    chassis = chassis_server.new_chassis(service.name, connect=connector(servers))
    chassis.buses.in_memory = bus.connect()
    server = _door(plan, service, settings, chassis, servers)
    async with chassis_server.placed(service, settings, chassis, server) as servicers:
        await server.start()
        chassis.identity.place(address=plan.address)
        chassis_server.announce(chassis, servicers)
        async with announced(settings, chassis):
            try:
                yield
            finally:
                chassis.health.stop()
                try:
                    await chassis_server.drain(servicers, chassis, settings.drain_seconds, Stop())
                finally:  # a second Ctrl-C cancels the drain
                    await server.stop(_FLUSH_SECONDS)


def _door(
    plan: PlannedService,
    service: ServiceDefinition[Any],
    settings: ServiceSettings,
    chassis: Chassis,
    servers: dict[str, InMemoryServer],
) -> Any:
    if plan.service == "router":
        server = chassis_server.new_server(service, settings, chassis)
        server.add_insecure_port(plan.address)
        return server
    server = InMemoryServer([chassis_server.interceptor(service, settings, chassis)])
    servers[plan.address.removeprefix("memory:")] = server
    return server
