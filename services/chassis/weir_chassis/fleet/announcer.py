"""A process announces itself for as long as it is there, and says so when it leaves.

a heartbeat ──┐
a change ─────┼─▶ the instance, with its lease ──▶ weir.fleet.<kind>.<instance_id>
asked for ────┘
leaving ────────▶ the same with a lease of 0
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from weir_chassis.background import first_of
from weir_chassis.broker import Broker, Session
from weir_chassis.clock import Clock
from weir_chassis.fleet.identity import Identity
from weir_chassis.fleet.wire import ASK, subject
from weir_chassis.nats import is_loopback, is_on_this_machine, open_broker
from weir_chassis.settings import ServiceSettings
from weir_chassis.telemetry import get_logger

if TYPE_CHECKING:
    from weir_chassis.server import Chassis

# One may come late and two be lost, and the lease still holds.
HEARTBEATS_PER_LEASE: Final = 4
# A broker that does not take the last word in that time does not take it at all, and the lease lapses.
_LEAVE_SECONDS: Final = 1.0


class Announcer:
    """`run` announces until `leave` has been called."""

    def __init__(self, broker: Broker, identity: Identity, clock: Clock, *, lease_seconds: float) -> None:
        self._broker, self._identity, self._clock = broker, identity, clock
        self._heartbeat_seconds = lease_seconds / HEARTBEATS_PER_LEASE
        self._leaves, self._left = asyncio.Event(), asyncio.Event()
        self._connected = False
        identity.place(lease_seconds=lease_seconds)

    async def run(self) -> None:
        """For ever: whoever was lost with the session before is told again in the next one."""
        await self._broker.run_in_sessions(self._announce)

    async def leave(self) -> None:
        """Returns when that has been said; at once where nobody is connected who could hear it."""
        self._leaves.set()
        if self._connected:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LEAVE_SECONDS):
                    await self._left.wait()

    async def _announce(self, session: Session) -> None:
        asked = asyncio.Event()
        self._connected = True
        try:
            await session.subscribe(ASK, lambda _: asked.set())
            while not self._leaves.is_set():
                asked.clear()
                said = self._identity.instance()
                await session.publish(subject(said), said.SerializeToString())
                changed = self._identity.differs_from(said)
                heartbeat = self._clock.sleep(self._heartbeat_seconds)
                await first_of(heartbeat, changed, asked.wait(), self._leaves.wait())
            said = self._identity.instance()
            said.draining = True
            said.lease.FromNanoseconds(0)
            await session.publish(subject(said), said.SerializeToString())
        finally:
            self._connected = False
            self._left.set()


@asynccontextmanager
async def announced(settings: ServiceSettings, chassis: Chassis) -> AsyncIterator[None]:
    """Others hear of this process while this is entered, where there is a broker."""
    broker = open_broker(settings, chassis)
    if broker is None:
        yield
        return
    _warn_of_loopback(settings, chassis.identity.instance().address)
    announcer = Announcer(broker, chassis.identity, chassis.clock, lease_seconds=settings.announce_lease_seconds)
    chassis.background.start(announcer.run(), name="announce")
    try:
        yield
    finally:
        await announcer.leave()


def _warn_of_loopback(settings: ServiceSettings, address: str) -> None:
    """What only this machine reaches is announced to others too, who find nobody there."""
    if is_loopback(address.rpartition(":")[0].strip("[]")) and not is_on_this_machine(settings):
        get_logger().warning("announces_loopback", address=address, hint="HOST or ADVERTISE say how others reach it")
