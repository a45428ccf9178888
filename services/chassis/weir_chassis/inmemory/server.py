"""A grpc.aio.Server that servicers can be added to, without a port."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import grpc
from grpc import StatusCode

from weir_chassis.inmemory.context import InMemoryContext, RequestStream
from weir_chassis.inmemory.exchange import By, Ending, Exchange, Metadata
from weir_chassis.telemetry import get_logger


class CallDetails(NamedTuple):
    method: str
    invocation_metadata: Metadata


class InMemoryServer(grpc.aio.Server):
    """Runs each call as a task of its own, as grpc.aio does."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()):
        self._interceptors = tuple(interceptors)
        self._generic_handlers: list[grpc.GenericRpcHandler] = []
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._running: dict[asyncio.Task[None], Exchange] = {}
        self._serving = False
        self._stopped = asyncio.Event()
        self._changed = asyncio.Event()
        # A handler must not see the context variables of the task that happens to call it.
        self._context = contextvars.copy_context()

    @property
    def serving(self) -> bool:
        return self._serving

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._generic_handlers.extend(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self._handlers.update({f"/{service_name}/{name}": handler for name, handler in method_handlers.items()})

    def add_insecure_port(self, address: str) -> int:
        raise grpc.aio.UsageError(f"an in-memory server has no port, so not {address!r} either")

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:  # noqa: ARG002
        return self.add_insecure_port(address)

    async def start(self) -> None:
        assert not self._stopped.is_set(), "a stopped server does not start again"
        self._context = contextvars.copy_context()
        self._set_serving(True)

    async def stop(self, grace: float | None) -> None:
        """Takes no new calls; after `grace` seconds ends those that still run."""
        self._set_serving(False)
        if self._running and grace:
            await asyncio.wait(self._running, timeout=grace)
        for task, exchange in list(self._running.items()):
            exchange.end(Ending(StatusCode.UNAVAILABLE, "the server has stopped", By.SERVER))
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """True when the time ran out first."""
        try:
            await asyncio.wait_for(self._stopped.wait(), timeout)
        except TimeoutError:
            return True
        return False

    async def state_changed(self) -> None:
        """Returns when the server has started or stopped."""
        await self._changed.wait()

    def begin(self, exchange: Exchange) -> None:
        """A client made this call."""
        if not self._serving:
            exchange.end(Ending(StatusCode.UNAVAILABLE, "the in-memory server is not serving", By.SERVER))
            return
        task = asyncio.get_running_loop().create_task(self._handle(exchange), context=self._context.copy())
        exchange.handler = task
        self._running[task] = exchange
        task.add_done_callback(self._running.pop)

    def _set_serving(self, serving: bool) -> None:
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def _handle(self, exchange: Exchange) -> None:
        try:
            handler = await self._find(CallDetails(exchange.method, exchange.metadata), self._interceptors)
            if handler is None:
                exchange.end(Ending(StatusCode.UNIMPLEMENTED, "Method not found!", By.SERVER))
            else:
                await _answer(handler, exchange)
        except grpc.aio.AbortError:
            assert exchange.ending is not None
        except asyncio.CancelledError:
            # By a client that went away, which has its ending; or by a handler that cancelled itself.
            exchange.end(Ending(StatusCode.CANCELLED, "the handler was cancelled", By.SERVER))
        except Exception as error:
            get_logger().exception("handler_failed", method=exchange.method)
            exchange.end(Ending(StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}", By.SERVER))

    async def _find(
        self, details: Any, interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        if interceptors:
            return await interceptors[0].intercept_service(lambda inner: self._find(inner, interceptors[1:]), details)
        registered = self._handlers.get(details.method)
        if registered is not None:
            return registered
        found = (handler.service(details) for handler in self._generic_handlers)
        return next((handler for handler in found if handler is not None), None)


async def _answer(handler: grpc.RpcMethodHandler[Any, Any], exchange: Exchange) -> None:
    context = InMemoryContext(exchange, handler)
    request: Any = RequestStream(context) if handler.request_streaming else await context.read()
    function = _function(handler)
    if inspect.isasyncgenfunction(function):
        await _write_all(function(request, context), context)
    else:
        response = await function(request, context)
        if not handler.response_streaming:
            await context.write(response)
    context.finish()


async def _write_all(messages: Any, context: InMemoryContext) -> None:
    async with aclosing(messages):
        async for message in messages:
            await context.write(message)


def _function(handler: grpc.RpcMethodHandler[Any, Any]) -> Any:
    unary = handler.stream_unary if handler.request_streaming else handler.unary_unary
    stream = handler.stream_stream if handler.request_streaming else handler.unary_stream
    return stream if handler.response_streaming else unary
