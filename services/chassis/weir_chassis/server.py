"""A service's life: settings → objects → SERVING → signal → NOT_SERVING → drain → stop. A second signal forces."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random, SystemRandom
from typing import Any, Generic, TypeVar

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from weir.fleet.v1.instance_pb2_grpc import add_InstanceServiceServicer_to_server
from weir_chassis import health as health_names
from weir_chassis.background import Background
from weir_chassis.calls import Calls
from weir_chassis.channel import Connect, open_channel
from weir_chassis.clock import Clock, SystemClock
from weir_chassis.errors import Draining
from weir_chassis.fleet.announcer import announced
from weir_chassis.fleet.identity import Identity
from weir_chassis.fleet.servicer import SERVICE_NAME as INSTANCE_SERVICE
from weir_chassis.fleet.servicer import InstanceServicer
from weir_chassis.garbage import search_less_for_cycles
from weir_chassis.health import Health
from weir_chassis.interceptors import CallInterceptor
from weir_chassis.leases import LeaseLedger
from weir_chassis.limits import server_options
from weir_chassis.malloc import keep_freed_memory
from weir_chassis.metrics import Metrics, metrics_server, watch_event_loop
from weir_chassis.nats import Buses
from weir_chassis.processors import stay_on_processors
from weir_chassis.settings import ANY_HOST, ServiceSettings, SettingsError, load_settings, variable_names
from weir_chassis.stopping import Stop, stop_on_signals, stop_with_parent
from weir_chassis.telemetry import configure_logging, get_logger

S = TypeVar("S", bound=ServiceSettings)

# Statuses of calls that were cut still have to leave before the connection closes.
_FLUSH_SECONDS = 1.0
_ADDRESS = ("host", "port")
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Registration:
    """One gRPC service: the generated `add_…_to_server`, what implements it, and its full name."""

    add_to_server: Callable[[Any, Any], None]
    servicer: object
    name: str


@dataclass(frozen=True, slots=True)
class Servicers:
    """What a service has to offer once it is built."""

    registrations: Sequence[Registration]
    # Their health names serve from the start; a model loaded later is announced by `chassis.health.set`.
    models: Sequence[str] = ()
    # Called when the service has become NOT_SERVING: ends the streams that live as long as their channel. A drain waits
    # for it as for the calls.
    drain: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Chassis:
    """What every service is handed: time, chance, the way out, and the books."""

    service: str
    metrics: Metrics
    leases: LeaseLedger
    health: Health
    background: Background
    calls: Calls
    # What others are told that this process is; a service describes itself there while it is built.
    identity: Identity
    clock: Clock
    random: Random
    connect: Connect = open_channel
    buses: Buses = field(default_factory=Buses)


@dataclass(frozen=True, slots=True)
class ServiceDefinition(Generic[S]):
    """A service, before it runs."""

    # One word; it names metrics and log lines.
    name: str
    settings: type[S]
    build: Callable[[S, Chassis], AbstractAsyncContextManager[Servicers]]
    # Full method names that live as long as a channel, so that no default deadline applies.
    unbounded: frozenset[str] = frozenset()


def new_chassis(service: str, *, metrics: Metrics | None = None, connect: Connect = open_channel) -> Chassis:
    metrics = metrics or Metrics(service)
    health, clock, random = Health(), SystemClock(), Random(SystemRandom().getrandbits(64))
    return Chassis(
        service=service,
        metrics=metrics,
        leases=LeaseLedger(observe=metrics.show_leases),
        health=health,
        background=Background(),
        calls=Calls(),
        identity=Identity(service, health, clock, random),
        clock=clock,
        random=random,
        connect=connect,
    )


def run(service: ServiceDefinition[Any]) -> int:
    """The whole of a service's `__main__`: `sys.exit(run(SERVICE))`. Returns the exit code."""
    try:
        settings = load_settings(service.settings)
        stay_on_processors(settings)
    except SettingsError as error:
        return _refuse(service, error)
    configure_logging(service.name, settings.log_level)
    keep_freed_memory()
    search_less_for_cycles()
    try:
        return _run_loop(serve(service, settings))
    except SettingsError as error:  # found while the service was built: a model that is not there, a port that is taken
        return _refuse(service, error)


async def serve(service: ServiceDefinition[S], settings: S, *, stop: Stop | None = None) -> int:
    """Serves until a signal, the parent's end or the death of a background task. Returns the exit code."""
    stop = stop or Stop()
    chassis = new_chassis(service.name)
    server = new_server(service, settings, chassis)
    with stop_on_signals(stop), stop_with_parent(stop, settings), ExitStack() as resources:
        if settings.metrics_port:
            resources.enter_context(metrics_server(chassis.metrics.registry, settings.host, settings.metrics_port))
        async with placed(service, settings, chassis, server) as servicers:
            address = await _listen(server, settings)
            chassis.identity.place(address=advertised(settings, address))
            announce(chassis, servicers)
            async with announced(settings, chassis):
                get_logger().info("serving", address=address, models=list(servicers.models))
                await _until_stopped(stop, chassis.background)
                chassis.health.stop()
                get_logger().info("draining", calls=len(chassis.calls), seconds=settings.drain_seconds)
                await drain(servicers, chassis, settings.drain_seconds, stop)
            await server.stop(_FLUSH_SECONDS)
    get_logger().info("stopped", failed=chassis.background.failure is not None)
    return EXIT_FAILED if chassis.background.failure else EXIT_OK


def new_server(service: ServiceDefinition[S], settings: S, chassis: Chassis) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=[interceptor(service, settings, chassis)],
        options=server_options(settings.max_concurrent_streams),
    )
    # A call finds its method by name. Generated code registers each method beside that, and for each that is registered
    # grpc.aio keeps a task, and waits anew for all of those tasks at every call.
    server.add_registered_method_handlers = lambda *_: None  # type: ignore[method-assign]
    return server


def interceptor(service: ServiceDefinition[S], settings: S, chassis: Chassis) -> CallInterceptor:
    return CallInterceptor(
        chassis.metrics,
        chassis.calls,
        chassis.clock,
        chassis.random,
        default_deadline_seconds=settings.default_deadline_seconds,
        unbounded=service.unbounded,
    )


@asynccontextmanager
async def placed(
    service: ServiceDefinition[S], settings: S, chassis: Chassis, server: grpc.aio.Server
) -> AsyncIterator[Servicers]:
    """Builds the service's objects and registers them on this server, which may be the in-memory one.

    Beside what the service offers, the process says what it is.
    """
    chassis.identity.place(region=settings.region)
    async with AsyncExitStack() as stack:
        # Built inside the background, so that a service's objects are gone only after the tasks that use them.
        built = await stack.enter_async_context(service.build(settings, chassis))
        servicers = replace(built, registrations=[*built.registrations, instance_registration(chassis.identity)])
        await stack.enter_async_context(chassis.background)
        chassis.background.start(watch_event_loop(chassis.metrics, chassis.clock), name="watch_event_loop")
        register(server, servicers.registrations, chassis.health)
        yield servicers


def instance_registration(identity: Identity) -> Registration:
    """By which a process of any kind says what it is."""
    return Registration(add_InstanceServiceServicer_to_server, InstanceServicer(identity), INSTANCE_SERVICE)


def register(server: grpc.aio.Server, registrations: Sequence[Registration], health: Health) -> None:
    """Adds the services, health and reflection."""
    for registration in registrations:
        registration.add_to_server(registration.servicer, server)
        health.set(registration.name, False)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [*(registration.name for registration in registrations), health_names.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)


def announce(chassis: Chassis, servicers: Servicers) -> None:
    """Everything that was registered serves now, and with it the process."""
    for registration in servicers.registrations:
        chassis.health.set(registration.name, True)
    for model in servicers.models:
        chassis.health.set(health_names.model_name(model), True)
    chassis.health.set(health_names.PROCESS, True)


async def drain(servicers: Servicers, chassis: Chassis, seconds: float, stop: Stop) -> None:
    """Takes nothing new, lets running calls finish for this long, then cuts the rest with DRAINING."""
    chassis.calls.refuse_new()
    finish = asyncio.ensure_future(_finish(servicers, chassis.calls))
    forced = asyncio.ensure_future(stop.forced.wait())
    await asyncio.wait({finish, forced}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for waiter in (finish, forced):
        waiter.cancel()
    finished, _ = await asyncio.gather(finish, forced, return_exceptions=True)
    if isinstance(finished, Exception):
        get_logger().error("drain_failed", exc_info=finished)
    cut = chassis.calls.cut(Draining("the service shut down before this call was done"))
    if cut:
        get_logger().warning("calls_cut", calls=cut)


async def _finish(servicers: Servicers, calls: Calls) -> None:
    if servicers.drain is not None:
        await servicers.drain()
    await calls.wait_idle()


async def _listen(server: grpc.aio.Server, settings: ServiceSettings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.port}")
    except RuntimeError as error:  # gRPC has one for a port that is taken and for a host that is not ours
        host_name, port_name = (name for name, field in variable_names(type(settings)).items() if field in _ADDRESS)
        raise SettingsError(f"{host_name}, {port_name}: cannot listen on {host}:{settings.port}") from error
    await server.start()
    return f"{host}:{port}"


def advertised(settings: ServiceSettings, address: str) -> str:
    """By which others reach what listens on `address`: as told, else this, by the host's name where it is any."""
    if settings.advertise:
        return settings.advertise
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host.strip("[]") in ANY_HOST else address


async def _until_stopped(stop: Stop, background: Background) -> None:
    waiters = [asyncio.ensure_future(stop.requested.wait()), asyncio.ensure_future(background.failed.wait())]
    await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)


def _refuse(service: ServiceDefinition[Any], error: SettingsError) -> int:
    print(f"{service.name}: {error}", file=sys.stderr)  # noqa: T201  # for the operator's eyes; a log line is for machines
    return EXIT_USAGE


def _run_loop(main: Any) -> int:
    try:
        import uvloop  # noqa: PLC0415  # not on Windows
    except ImportError:
        return int(asyncio.run(main))
    return int(uvloop.run(main))
