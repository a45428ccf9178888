"""A fake worker that is served: in memory under a name, with health that a test can change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from weir_chassis.clock import SystemClock
from weir_chassis.fleet.announcer import Announcer
from weir_chassis.fleet.identity import Identity
from weir_chassis.health import Health
from weir_chassis.inmemory import InMemoryServer
from weir_chassis.inmemory.broker import InMemoryBus
from weir_chassis.server import Registration, instance_registration, register
from weir_chassis.testing import plain_interceptor


@dataclass
class Worker:
    """One service in one in-memory server."""

    registration: Registration
    # The chassis's word for what it is.
    kind: str = ""
    health: Health = field(default_factory=Health)

    def __post_init__(self) -> None:
        self.server = InMemoryServer([plain_interceptor()])
        self.identity = Identity(self.kind, self.health, SystemClock(), Random())
        register(self.server, [self.registration, instance_registration(self.identity)], self.health)
        self.health.set(self.registration.name, True)

    @asynccontextmanager
    async def announced(self, bus: InMemoryBus, address: str, lease_seconds: float) -> AsyncIterator[None]:
        """It says so when it leaves; one that is cancelled does not."""
        self.identity.place(address=address)
        announcer = Announcer(bus.connect(), self.identity, SystemClock(), lease_seconds=lease_seconds)
        task = asyncio.create_task(announcer.run())
        try:
            yield
            await announcer.leave()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def drain(self) -> None:
        self.health.set(self.registration.name, False)
