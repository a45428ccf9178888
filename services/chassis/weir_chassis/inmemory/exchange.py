"""One call, seen from neither end: its metadata, its two pipes, its deadline, and a status that is set once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from grpc import StatusCode

from weir_chassis.inmemory.pipe import Pipe


class Metadatum(NamedTuple):
    """As grpc.aio hands them to a servicer."""

    key: str
    value: str | bytes


Metadata = tuple[Metadatum, ...]


class By(Enum):
    """Who ended the call."""

    SERVER = "server"
    DEADLINE = "deadline"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Ending:
    code: StatusCode
    details: str
    by: By
    trailing_metadata: Metadata = ()


class Exchange:
    def __init__(
        self,
        method: str,
        metadata: Metadata,
        timeout: float | None,
        request_serializer: Callable[[Any], bytes] | None,
        response_deserializer: Callable[[bytes], Any] | None,
    ):
        self.method, self.metadata = method, metadata
        self.request_serializer, self.response_deserializer = request_serializer, response_deserializer
        self.requests, self.responses = Pipe(), Pipe()
        self.initial_metadata: Metadata = ()
        self.begun = asyncio.Event()  # the initial metadata is known
        self.ended = asyncio.Event()  # the ending is known
        self.ending: Ending | None = None
        self.handler: asyncio.Task[None] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        self._deadline = None if timeout is None else self._loop.time() + timeout
        self._timer = None if self._deadline is None else self._loop.call_at(self._deadline, self._expire)

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.time())

    def on_end(self, callback: Callable[[], None]) -> None:
        """Runs it at the end, or now when that has been."""
        if self.ending is None:
            self._callbacks.append(callback)
        else:
            self._loop.call_soon(callback)

    def begin(self, initial_metadata: Metadata) -> None:
        if not self.begun.is_set():
            self.initial_metadata = initial_metadata
            self.begun.set()

    def end(self, ending: Ending) -> bool:
        """False when the call had ended before: the first ending stands."""
        if self.ending is not None:
            return False
        self.ending = ending
        if self._timer is not None:
            self._timer.cancel()
        self.requests.discard()
        if ending.by is By.SERVER:
            self.responses.close()  # the client may still read what was sent before
        else:
            self.responses.discard()
            if self.handler is not None:
                self.handler.cancel()
        self.begin(())
        self.ended.set()
        for callback in self._callbacks:
            callback()
        self._callbacks.clear()
        return True

    def cancel(self, details: str) -> bool:
        return self.end(Ending(StatusCode.CANCELLED, details, By.CLIENT))

    def _expire(self) -> None:
        self.end(Ending(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", By.DEADLINE))


def as_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    return tuple(Metadatum(key, value) for key, value in metadata or ())


def carry(message: Any, serialize: Callable[[Any], bytes] | None, parse: Callable[[bytes], Any] | None) -> Any:
    """The message as its reader wants it: itself when it already is what `parse` makes, else through bytes.

    A generated parser is `SomeMessage.FromString`, a method bound to its class. Where one end speaks messages and the
    other raw bytes, or another class, the bytes are made as on the wire.
    """
    if getattr(parse, "__self__", None) is type(message):
        return message
    data = message if serialize is None else serialize(message)
    return data if parse is None else parse(data)
