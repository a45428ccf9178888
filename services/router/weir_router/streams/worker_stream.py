"""What the streams to workers of every kind have alike: one call's life, and what those on it are told of its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import ClassVar, Generic, TypeVar

import grpc

from weir_chassis.errors import Draining, WeirError, WorkerLost
from weir_router.streams.duplex import Duplex

Q = TypeVar("Q")
A = TypeVar("A")


class WorkerStream(ABC, Generic[Q, A]):
    kind: ClassVar[str]

    def __init__(self, address: str, pause: Callable[[], Awaitable[None] | None] | None = None):
        """`pause`: see `Duplex`."""
        self.address = address
        self._duplex: Duplex[Q, A] = Duplex(self._next_message, self._on_message, pause)
        self._open = True
        # What those on it are told when it is taken down from outside.
        self.cause = "its connection failed"
        self._drains = False

    @property
    def is_open(self) -> bool:
        return self._open

    async def run(self, call: grpc.aio.StreamStreamCall[Q, A]) -> None:
        """Until the call ends: always raises a WeirError, after everybody on it has been told."""
        try:
            await self._duplex.run(call)
        except WeirError as error:
            self.cause, self._drains = error.message, isinstance(error, Draining)
            raise
        finally:
            self._open = False
            self._fail_all()

    @abstractmethod
    def _next_message(self) -> Q | None:
        """What is to be sent now."""

    @abstractmethod
    def _on_message(self, message: A) -> None: ...

    @abstractmethod
    def _fail_all(self) -> None:
        """The call has ended: whoever is on it is told `cause`."""

    def _lost(self, cause: str) -> WeirError:
        kind = Draining if self._drains else WorkerLost
        return kind(f"{self.kind} {self.address} was lost: {cause}", metadata={"worker": self.address})
