"""A message bus in memory, as unreliable as one may be: it loses, repeats and reorders, and sessions end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

from weir_chassis.background import first_of
from weir_chassis.broker import Deliver, Message, Session, SessionLost

MAX_PAYLOAD = 1024 * 1024


@dataclass(frozen=True)
class Faults:
    """What becomes of a message for one subscriber, each by this chance; otherwise it arrives, in its turn."""

    lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0


class FakeBus:
    """Everybody's. Messages are delivered in the next turn of the event loop, the late ones some messages later."""

    def __init__(self, seed: int = 0, max_payload: int = MAX_PAYLOAD) -> None:
        self.faults = Faults()
        self.max_payload = max_payload
        self.published: list[Message] = []
        self._random = Random(seed)
        self._inboxes = count(1)
        self._late: list[tuple[Deliver, Message]] = []
        self.brokers: list[FakeBroker] = []

    def connect(self) -> FakeBroker:
        broker = FakeBroker(self)
        self.brokers.append(broker)
        return broker

    def new_inbox(self) -> str:
        return f"inbox.{next(self._inboxes)}"

    def publish(self, message: Message) -> None:
        self.published.append(message)
        for broker in self.brokers:
            for subject, deliver in broker.session.subscriptions if broker.session else ():
                if _matches(subject, message.subject):
                    self._send(deliver, message)

    def _send(self, deliver: Deliver, message: Message) -> None:
        loop, chance = asyncio.get_running_loop(), self._random.random
        for _ in range(2 if chance() < self.faults.twice else 1):
            if chance() < self.faults.lost:
                continue
            if chance() < self.faults.late:
                self._late.append((deliver, message))
            else:
                loop.call_soon(deliver, message)
        while self._late and chance() < 0.3:
            late, old = self._late.pop(self._random.randrange(len(self._late)))
            loop.call_soon(late, old)


class FakeBroker:
    """One process's connection to it; connected from the start."""

    def __init__(self, bus: FakeBus) -> None:
        self._bus = bus
        self._changed = asyncio.Event()
        self.session: FakeSession | None = FakeSession(bus)

    def lose(self) -> None:
        """The session ends; messages that were under way to it may still come."""
        if self.session is not None:
            self.session.ended.set()
        self._set(None)

    def restore(self) -> None:
        if self.session is None:
            self._set(FakeSession(self._bus))

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

    def _set(self, session: FakeSession | None) -> None:
        self.session = session
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass
class FakeSession:
    bus: FakeBus
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
