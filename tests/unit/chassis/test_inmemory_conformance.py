"""Every check of the suite, over a real connection and in memory: neither may know something the other does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random

import grpc
import pytest

from unit.chassis.call_conformance import CHECKS, LIMIT_SECONDS, ScriptServicer, Wire, registration
from weir_chassis.calls import Calls
from weir_chassis.channel import open_channel
from weir_chassis.clock import SystemClock
from weir_chassis.health import Health
from weir_chassis.inmemory import InMemoryChannel, InMemoryServer
from weir_chassis.interceptors import CallInterceptor
from weir_chassis.limits import server_options
from weir_chassis.metrics import Metrics
from weir_chassis.server import register


@asynccontextmanager
async def loopback() -> AsyncIterator[Wire]:
    grpc.aio.init_grpc_aio()  # as in `testing.serve_on_loopback`
    servicer, calls = ScriptServicer(), Calls()
    server = grpc.aio.server(interceptors=[_interceptor(calls)], options=server_options(1000))
    register(server, [registration(servicer)], Health())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield Wire(channel, servicer, calls, lambda: server.stop(None))
    finally:
        await server.stop(None)


@asynccontextmanager
async def in_memory() -> AsyncIterator[Wire]:
    servicer, calls = ScriptServicer(), Calls()
    server = InMemoryServer([_interceptor(calls)])
    register(server, [registration(servicer)], Health())
    await server.start()
    try:
        async with InMemoryChannel(server) as channel:
            yield Wire(channel, servicer, calls, lambda: server.stop(None))
    finally:
        await server.stop(None)


def _interceptor(calls: Calls) -> CallInterceptor:
    return CallInterceptor(Metrics("test"), calls, SystemClock(), Random(0))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("placement", [loopback, in_memory], ids=lambda placement: placement.__name__)
async def test_call(
    placement: Callable[[], AbstractAsyncContextManager[Wire]], check: Callable[[Wire], Awaitable[None]]
) -> None:
    async with placement() as wire, asyncio.timeout(2 * LIMIT_SECONDS):
        await check(wire)
