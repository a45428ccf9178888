"""Announcements, followed on the broker: asked for when a session begins, then heard as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from weir_chassis.broker import Broker, Message, Session
from weir_chassis.clock import Clock
from weir_chassis.fleet.wire import ASK, FOLLOWED, parse
from weir_router.fleet.announced import Announced


class Announcements:
    """`announced` is what has been heard; `on_change` is told when that is something else."""

    def __init__(self, broker: Broker, clock: Clock, on_change: Callable[[], None]) -> None:
        self.announced = Announced()
        self.connected = False
        self._broker, self._clock, self._on_change = broker, clock, on_change

    async def run(self) -> None:
        """For ever."""
        await self._broker.run_in_sessions(self._follow)

    async def _follow(self, session: Session) -> None:
        self.connected = True
        try:
            await session.subscribe(FOLLOWED, self._hear)
            await session.publish(ASK, b"")
            await asyncio.Event().wait()  # until the session ends
        finally:
            self.connected = False

    def _hear(self, message: Message) -> None:
        instance = parse(message.payload)
        if instance is not None and self.announced.hear(instance, self._clock.monotonic()):
            self._on_change()
