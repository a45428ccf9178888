"""The seam to what carries messages that are no calls: announcements, events, requests to whoever listens.

    broker.run_in_sessions(work)     `work` begins anew with every connection, and is cancelled when that is lost
    session.publish, .subscribe      at most once, and only as long as the session lasts

Nothing here promises delivery. Who needs to know what they missed numbers it, and asks. `nats.py` is the real one;
without one configured, nothing is published.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol


class SessionLost(Exception):  # noqa: N818  # it is what happened; nobody is to blame
    """The connection ended. The next session comes by itself."""


@dataclass(frozen=True, slots=True)
class Message:
    subject: str
    payload: bytes
    reply: str = ""  # where an answer is expected; empty: nowhere


Deliver = Callable[[Message], None]


class Session(Protocol):
    """One connection, from its beginning to its end. Every method raises SessionLost once that has come."""

    @property
    def max_payload(self) -> int:
        """Bytes that one message may carry."""
        ...

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Hands the message over. Waits while the connection is slower than its senders."""
        ...

    async def subscribe(self, subject: str, deliver: Deliver) -> None:
        """Until the session ends. `deliver` must be quick; messages that come faster than it takes them are dropped."""
        ...

    def new_inbox(self) -> str:
        """A subject that nobody else subscribes to; `<inbox>.<anything>` is its owner's too."""
        ...


class Broker(Protocol):
    async def run_in_sessions(self, work: Callable[[Session], Awaitable[None]]) -> None:
        """For ever: runs `work` in each session from its beginning, and cancels it when the session ends.

        Work that returns is done until the next session; SessionLost is caught, every other error is raised here.
        """
        ...
