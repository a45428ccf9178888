"""A message bus for services of one process: it loses nothing, and delivers in the next turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from weir_chassis.background import first_of
from weir_chassis.broker import Deliver, Message, Session, SessionLost

# As NATS's own default.
MAX_PAYLOAD: Final = 1024 * 1024


class InMemoryBus:
    """Everybody's."""

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self.max_payload = max_payload
        self.brokers: list[InMemoryBroker] = []
        self._inboxes = count(1)

    def connect(self) -> InMemoryBroker:
        broker = InMemoryBroker(self)
        self.brokers.append(broker)
        return broker

    def new_inbox(self) -> str:
        return f"inbox.{next(self._inboxes)}"

    def publish(self, message: Message) -> None:
        for broker in self.brokers:
            for subject, deliver in broker.session.subscriptions if broker.session else ():
                if _matches(subject, message.subject):
                    self.send(deliver, message)

    def send(self, deliver: Deliver, message: Message) -> None:
        """To one subscriber."""
        asyncio.get_running_loop().call_soon(deliver, message)


class InMemoryBroker:
    """One service's connection to it; connected from the start."""

    def __init__(self, bus: InMemoryBus) -> None:
        self._bus = bus
        self._changed = asyncio.Event()
        self.session: InMemorySession | None = InMemorySession(bus)

    def lose(self) -> None:
        """The session ends; messages that were under way to it may still come."""
        if self.session is not None:
            self.session.ended.set()
        self._set(None)

    def restore(self) -> None:
        if self.session is None:
            self._set(InMemorySession(self._bus))

    async def run_in_sessions(self, work: Callable[[Session], Awaitable[None]]) -> None:
        while True:
            changed, session = self._changed, self.session
            if session is not None:
                try:
                    await first_of(work(session), session.ended.wait())
                except SessionLost:
                    assert session.ended.is_set()
            if self.session is session:
                await changed.wait()

    def _set(self, session: InMemorySession | None) -> None:
        self.session = session
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass
class InMemorySession:
    bus: InMemoryBus
    subscriptions: list[tuple[str, Deliver]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def max_payload(self) -> int:
        return self.bus.max_payload

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        self._require_life()
        assert len(payload) <= self.max_payload, len(payload)
        self.bus.publish(Message(subject, payload, reply))
        await asyncio.sleep(0)

    async def subscribe(self, subject: str, deliver: Deliver) -> None:
        self._require_life()
        self.subscriptions.append((subject, deliver))

    def new_inbox(self) -> str:
        return self.bus.new_inbox()

    def _require_life(self) -> None:
        if self.ended.is_set():
            raise SessionLost("lost")


def _matches(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    return len(wanted) == len(given) and all(one in ("*", other) for one, other in zip(wanted, given, strict=True))
