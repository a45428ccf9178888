"""A stream's events as messages of its call: one each, or all that are there together as one where the client takes it.

The message with the receipt is the last. It is not written but left to the call, which sends it with its status.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from weir.inference.v1.stream_pb2 import Receipt
from weir.router.v1.router_pb2 import ChatResponse, GenerateResponse, ResumeResponse
from weir_router.delivery import Event
from weir_router.mapping import batched_response, response

R = TypeVar("R", ChatResponse, GenerateResponse, ResumeResponse)


class EventWriter(Generic[R]):
    def __init__(self, kind: type[R], write: Callable[[R], Awaitable[None]], *, batched: bool):
        self._kind: type[R] = kind
        self._write: Callable[[R], Awaitable[None]] = write
        self._batched = batched
        self._last: R | None = None

    async def write(self, events: Sequence[Event]) -> None:
        """What has come together, in its order: at least one event."""
        messages = (
            [batched_response(self._kind, events)] if self._batched else [response(self._kind, e) for e in events]
        )
        if isinstance(events[-1], Receipt):
            self._last = messages.pop()
        for message in messages:
            await self._write(message)

    @property
    def last(self) -> R:
        assert self._last is not None, "a stream that ends well ends with its receipt"
        return self._last
