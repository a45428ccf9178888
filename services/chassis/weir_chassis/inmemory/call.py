"""The client's end of a call, in the four shapes that stubs return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from typing import Any

import grpc
from grpc import StatusCode

from weir_chassis.inmemory.exchange import By, Exchange

Requests = AsyncIterable[Any] | Iterable[Any]

_CANCELLED_BY_APPLICATION = "Locally cancelled by application!"


class Call:
    """What all four shapes share."""

    def __init__(self, exchange: Exchange):
        self._exchange = exchange

    def cancel(self) -> bool:
        return self._exchange.cancel(_CANCELLED_BY_APPLICATION)

    def cancelled(self) -> bool:
        ending = self._exchange.ending
        return ending is not None and ending.code is StatusCode.CANCELLED

    def done(self) -> bool:
        return self._exchange.ending is not None and not len(self._exchange.responses)

    def time_remaining(self) -> float | None:
        return self._exchange.time_remaining()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._exchange.on_end(lambda: callback(self))

    async def initial_metadata(self) -> grpc.aio.Metadata:
        await self._exchange.begun.wait()
        return grpc.aio.Metadata(*self._exchange.initial_metadata)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        await self._exchange.ended.wait()
        assert self._exchange.ending is not None
        return grpc.aio.Metadata(*self._exchange.ending.trailing_metadata)

    async def code(self) -> StatusCode:
        await self._exchange.ended.wait()
        assert self._exchange.ending is not None
        return self._exchange.ending.code

    async def details(self) -> str:
        await self._exchange.ended.wait()
        assert self._exchange.ending is not None
        return self._exchange.ending.details

    async def debug_error_string(self) -> str:
        return await self.details()

    async def wait_for_connection(self) -> None:
        if self._exchange.ending is not None:
            self._raise_for_status()

    async def _receive(self) -> Any:
        """The next response or EOF. Whoever is cancelled while waiting for a call cancels the call."""
        try:
            return await self._exchange.responses.get()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _raise_for_status(self) -> None:
        ending = self._exchange.ending
        assert ending is not None
        if ending.by is By.CLIENT:
            raise asyncio.CancelledError
        if ending.code is not StatusCode.OK:
            raise grpc.aio.AioRpcError(
                ending.code,
                grpc.aio.Metadata(*self._exchange.initial_metadata),
                grpc.aio.Metadata(*ending.trailing_metadata),
                ending.details,
                ending.details,
            )


class _UnaryResponse(Call):
    _response: Any = grpc.aio.EOF

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        if self._response is grpc.aio.EOF:
            self._response = await self._receive()
        if self._exchange.ending is None:
            await self._exchange.ended.wait()
        self._raise_for_status()
        return self._response


class _StreamResponse(Call):
    _iterates: bool | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        self._use(iterates=True)
        return self

    async def __anext__(self) -> Any:
        message = await self._receive()
        if message is grpc.aio.EOF:
            self._raise_for_status()
            raise StopAsyncIteration
        return message

    async def read(self) -> Any:
        self._use(iterates=False)
        message = await self._receive()
        if message is grpc.aio.EOF:
            self._raise_for_status()
        return message

    def _use(self, *, iterates: bool) -> None:
        if self._iterates is None:
            self._iterates = iterates
        if self._iterates is not iterates:
            raise grpc.aio.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")


class _StreamRequest(Call):
    def __init__(self, exchange: Exchange, requests: Requests | None):
        super().__init__(exchange)
        self._feeder: asyncio.Task[None] | None = None
        if requests is not None:
            self._feeder = asyncio.get_running_loop().create_task(_feed(exchange, requests))
            exchange.on_end(_canceller(self._feeder))

    async def write(self, request: Any) -> None:
        self._check_writes()
        if self._exchange.ending is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._exchange.requests.closed:
            raise asyncio.InvalidStateError('RPC is half closed after calling "done_writing".')
        try:
            written = await self._exchange.requests.put(request)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not written:
            self._raise_for_status()

    async def done_writing(self) -> None:
        self._check_writes()
        self._exchange.requests.close()

    def _check_writes(self) -> None:
        if self._feeder is not None:
            raise grpc.aio.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")


async def _feed(exchange: Exchange, requests: Requests) -> None:
    try:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                await exchange.requests.put(request)
        else:
            for request in requests:
                await exchange.requests.put(request)
        exchange.requests.close()
    except BaseException as error:
        exchange.cancel(_CANCELLED_BY_APPLICATION)
        if not isinstance(error, Exception):
            raise  # what went wrong in the iterator is told by the call's end alone, as gRPC has it


def _canceller(task: asyncio.Task[None]) -> Callable[[], None]:
    def cancel() -> None:
        task.cancel()

    return cancel


class UnaryUnaryCall(_UnaryResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    pass


class UnaryStreamCall(_StreamResponse, grpc.aio.UnaryStreamCall[Any, Any]):
    pass


class StreamUnaryCall(_StreamRequest, _UnaryResponse, grpc.aio.StreamUnaryCall[Any, Any]):
    pass


class StreamStreamCall(_StreamRequest, _StreamResponse, grpc.aio.StreamStreamCall[Any, Any]):
    pass
