"""A stream that goes on when its connection does not: at the same router or another one, without gap or repetition."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, TypeVar

from weir.router.v1.router_pb2 import ChatResponse, GenerateResponse, NextToken, ResumeResponse
from weir_chassis.errors import Cancelled, Draining, NotFound, WeirError
from weir_chassis.status import RemoteError

Response = TypeVar("Response", ChatResponse, GenerateResponse, ResumeResponse)
# Opens the stream again, for what is still wanted of it.
Open = Callable[["Had"], AsyncIterator[Response]]

_MIN_PAUSE_SECONDS: Final = 0.1
_MAX_PAUSE_SECONDS: Final = 2.0


@dataclass(slots=True)
class _Output:
    tokens: int = 0
    text_bytes: int = 0
    tool_call_bytes: int = 0
    finished: bool = False


@dataclass(slots=True)
class Had:
    """What a client has been given of a stream."""

    # As the router names it; empty: nothing has come yet.
    request_id: str = ""
    attempt: int = 0
    outputs: dict[int, _Output] = field(default_factory=dict)
    ending: set[str] = field(default_factory=set)

    @property
    def begun(self) -> bool:
        return bool(self.request_id)

    def take(self, event: ChatResponse | GenerateResponse | ResumeResponse) -> bool:
        """Whether the event is new: all but deltas come again with each resumption."""
        kind = event.WhichOneof("event")
        match kind:
            case "accepted":
                is_new, self.request_id = not self.begun, event.accepted.request_id
                self.attempt = max(self.attempt, event.accepted.attempt)
                return is_new
            case "continued":
                is_new = event.continued.attempt > self.attempt
                self.attempt = max(self.attempt, event.continued.attempt)
                return is_new
            case "delta":
                output = self.outputs.setdefault(event.delta.output_index, _Output())
                assert event.delta.first_token_index == output.tokens, "a delta was lost or repeated"
                output.tokens += len(event.delta.token_ids)
                output.text_bytes += len(event.delta.text.encode())
                output.tool_call_bytes += sum(len(call.arguments_json.encode()) for call in event.delta.tool_calls)
            case "finished":
                output = self.outputs.setdefault(event.finished.output_index, _Output())
                is_new, output.finished = not output.finished, True
                return is_new
            case "usage" | "receipt":
                is_new = kind not in self.ending
                self.ending.add(kind)
                return is_new
        return True

    def next(self) -> list[NextToken]:
        """What it wants next."""
        return [
            NextToken(
                output_index=index,
                first_token_index=output.tokens,
                text_bytes=output.text_bytes,
                tool_call_bytes=output.tool_call_bytes,
            )
            for index, output in self.outputs.items()
        ]


async def going_on(
    opened: Open[Response], next_router: Callable[[], None], *, routers: int, retain_seconds: float
) -> AsyncIterator[Response]:
    """The events of a stream, opened again whenever its connection is lost, for as long as it is retained.

    Raises what the stream itself ended with, and what the last of the routers said when none of them goes on with it.
    """
    had, refusals, pause = Had(), 0, _MIN_PAUSE_SECONDS
    heard_at = monotonic()
    while True:
        spoke = False
        try:
            async with aclosing(opened(had)) as events:  # type: ignore[type-var]
                async for event in events:
                    spoke, heard_at, refusals, pause = True, monotonic(), 0, _MIN_PAUSE_SECONDS
                    if had.take(event):
                        yield event
            return
        except WeirError as error:
            refusals += isinstance(error, NotFound)
            if not is_lost(error, spoke=spoke) or refusals >= routers or monotonic() - heard_at > retain_seconds:
                raise
        next_router()
        await asyncio.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)


def is_lost(error: WeirError, *, spoke: bool) -> bool:
    """Whether the stream may go on elsewhere. `spoke`: this call has brought events, so the error is the stream's own.

    Unless it comes from the transport, or from a router that shuts down.
    """
    if isinstance(error, Draining):
        return True
    if isinstance(error, RemoteError):
        return not spoke and (error.row.retryable or isinstance(error, NotFound))
    return error.row.retryable or isinstance(error, Cancelled)
