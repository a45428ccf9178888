"""The doubles that the chassis ships, for its own tests and everyone's."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from random import Random

import grpc

from weir_chassis.calls import Calls
from weir_chassis.channel import open_channel
from weir_chassis.clock import Clock, SystemClock
from weir_chassis.health import Health
from weir_chassis.inmemory import InMemoryChannel, InMemoryServer
from weir_chassis.interceptors import CallInterceptor
from weir_chassis.leases import LeaseLedger
from weir_chassis.limits import server_options
from weir_chassis.metrics import Metrics
from weir_chassis.server import Registration, register

# How often the loop is given to others before time moves: enough for a woken task to go through a few awaits and sleep
# again. A task that needs more is still woken in order, only at a later virtual moment than it asked for.
_SETTLE_TURNS = 20


class VirtualClock:
    """Moves only when told. Sleepers wake in the order of their times, each seeing its own time."""

    def __init__(self, start: float = 0.0, epoch: float = 1_700_000_000.0):
        self._now, self._epoch = start, epoch
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._epoch + self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), wake))
        await wake

    @property
    def sleeping(self) -> int:
        """How many sleep now."""
        return sum(not wake.done() for _, _, wake in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Lets this much time pass, waking whoever's time comes, in order."""
        assert seconds >= 0, seconds
        end = self._now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            when, _, wake = heapq.heappop(self._sleepers)
            self._now = max(self._now, when)
            if not wake.done():
                wake.set_result(None)
                await settle()
        self._now = end


async def settle(turns: int = _SETTLE_TURNS) -> None:
    """Lets every task that can run, run."""
    for _ in range(turns):
        await asyncio.sleep(0)


@asynccontextmanager
async def serve_in_memory(
    *registrations: Registration, interceptor: grpc.aio.ServerInterceptor | None = None, health: Health | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to these services, with the production interceptor and without a wire."""
    server = InMemoryServer([interceptor or plain_interceptor()])
    register(server, registrations, health or Health())
    await server.start()
    channel = InMemoryChannel(server)
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(None)


@asynccontextmanager
async def serve_on_loopback(
    *registrations: Registration,
    interceptor: grpc.aio.ServerInterceptor | None = None,
    health: Health | None = None,
    socket: Path | None = None,
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to these services over a real connection, on a free port. `socket`: there instead, for others too."""
    # Held for the life of the process: gRPC otherwise stops its poller whenever the last object of a test is collected,
    # and joins a thread from inside the garbage collector.
    grpc.aio.init_grpc_aio()
    server = grpc.aio.server(interceptors=[interceptor or plain_interceptor()], options=server_options(128))
    register(server, registrations, health or Health())
    port = server.add_insecure_port("127.0.0.1:0" if socket is None else f"unix:{socket}")
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}" if socket is None else f"unix:{socket}")
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(None)


def plain_interceptor(clock: Clock | None = None, seed: int = 0) -> CallInterceptor:
    return CallInterceptor(Metrics("test"), Calls(), clock or SystemClock(), Random(seed))


def assert_no_leases(ledger: LeaseLedger) -> None:
    """For the end of a test: whatever happened, everything was given back."""
    ledger.check_integrity()
    assert not ledger.live(), f"still held: {', '.join(map(repr, ledger.live()))}"
