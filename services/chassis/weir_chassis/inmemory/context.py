"""The server's end of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import grpc
from grpc import StatusCode

from weir_chassis.inmemory.exchange import By, Ending, Exchange, Metadata, as_metadata, carry


class InMemoryContext(grpc.aio.ServicerContext[Any, Any]):
    """What a handler may do. The same promises as grpc.aio's context, without a wire."""

    def __init__(self, exchange: Exchange, handler: grpc.RpcMethodHandler[Any, Any]):
        self._exchange = exchange
        self._parse_request = handler.request_deserializer
        self._serialize_response = handler.response_serializer
        self._trailing_metadata: Metadata = ()
        self._code, self._details = StatusCode.OK, ""

    async def read(self) -> Any:
        message = await self._exchange.requests.get()
        if message is grpc.aio.EOF:
            return message
        return carry(message, self._exchange.request_serializer, self._parse_request)

    async def write(self, message: Any) -> None:
        self._exchange.begin(())
        carried = carry(message, self._serialize_response, self._exchange.response_deserializer)
        if not await self._exchange.responses.put(carried):
            raise grpc.aio.UsageError("RPC already finished.")

    async def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        if self._exchange.begun.is_set():
            raise grpc.aio.UsageError("Send initial metadata failed: already sent")
        self._exchange.begin(as_metadata(initial_metadata))

    async def abort(self, code: StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        assert code is not StatusCode.OK, "an abort needs a code that is not OK"
        self._exchange.end(Ending(code, details, By.SERVER, as_metadata(trailing_metadata) or self._trailing_metadata))
        raise grpc.aio.AbortError("Locally aborted.")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata)

    def finish(self) -> None:
        """The handler returned."""
        self._exchange.end(Ending(self._code, self._details, By.SERVER, self._trailing_metadata))

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self._trailing_metadata = as_metadata(trailing_metadata)

    def invocation_metadata(self) -> Any:
        return self._exchange.metadata

    def set_code(self, code: StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def set_compression(self, compression: grpc.Compression) -> None:
        """There is nothing to compress."""

    def disable_next_message_compression(self) -> None:
        """There is nothing to compress."""

    def peer(self) -> str:
        return "memory:"

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    def time_remaining(self) -> float | None:  # type: ignore[override]  # grpc's own returns None for no deadline
        return self._exchange.time_remaining()

    def trailing_metadata(self) -> Any:
        return self._trailing_metadata

    def code(self) -> StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def cancelled(self) -> bool:
        ending = self._exchange.ending
        return ending is not None and ending.by is not By.SERVER

    def done(self) -> bool:
        return self._exchange.ending is not None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._exchange.on_end(lambda: callback(self))


class RequestStream:
    """The requests of a streaming call, as a handler iterates over them."""

    def __init__(self, context: InMemoryContext):
        self._context = context

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message
