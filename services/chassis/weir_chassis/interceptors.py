"""Around every call of every service: telemetry around errors around deadline.

    answer
    ├── observed      request id and trace bound, call counted and timed
    ├── translated    any exception becomes a status of the table, with details
    └── limited       a call without a deadline gets the service's own
        └── the servicer's method, with a context that cannot abort by itself

One interceptor does all three, and wraps the handler, not the messages: a stream's messages go straight to gRPC.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from random import Random
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc

from weir_chassis.calls import Calls, is_infrastructure
from weir_chassis.clock import Clock
from weir_chassis.deadline import time_left
from weir_chassis.errors import DeadlineExceeded, Unsupported
from weir_chassis.metrics import Metrics
from weir_chassis.observed import Observer, Outcome
from weir_chassis.status import to_rpc_status
from weir_chassis.telemetry import request_from

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic only in its stubs
Method = Callable[[Any, Any], Any]
Answer = Callable[[Any, Any], Awaitable[Any]]
Serialize = Callable[[Any], bytes]
F = TypeVar("F", bound=Callable[..., Any])


# What is in the way of a first message is only what is in the way of the call's end, too.
_FIRST_WRITE_SECONDS = 5.0


class GuardedContext:
    """The context that servicers see. It cannot end the call: a servicer raises, and one place translates."""

    def __init__(self, context: Any, clock: Clock):
        self._context, self._clock = context, clock
        # Monotonic seconds: the service's own, for a call that has brought none.
        self.deadline: float | None = None
        self._first_write: asyncio.Future[None] | None = None
        # Bound once, so that a message costs no more than without the guard.
        self.read = context.read

    async def write(self, message: Any) -> None:
        """The first one goes on when its task is cancelled: gRPC would forget that it has begun to answer, begin once
        more with the status, and fail in that, so that the call never ended."""
        self.write = self._context.write  # type: ignore[method-assign]  # of all others
        self._first_write = asyncio.ensure_future(self._context.write(message))
        self._first_write.add_done_callback(_heard)
        await asyncio.shield(self._first_write)

    async def end(self, status: grpc.Status) -> NoReturn:
        if self._first_write is not None:
            await asyncio.wait({self._first_write}, timeout=_FIRST_WRITE_SECONDS)
        await self._context.abort_with_status(status)
        raise AssertionError("abort_with_status raises")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def time_remaining(self) -> float | None:
        left: float | None = self._context.time_remaining()
        if left is None and self.deadline is not None:
            return max(0.0, self.deadline - self._clock.monotonic())
        return left

    async def abort(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a servicer called context.abort; raise a WeirError")

    async def abort_with_status(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a servicer called context.abort_with_status; raise a WeirError")

    def set_code(self, *_: Any) -> NoReturn:
        raise AssertionError("a servicer called context.set_code; raise a WeirError")

    def set_details(self, *_: Any) -> NoReturn:
        raise AssertionError("a servicer called context.set_details; raise a WeirError")


def _heard(write: asyncio.Future[None]) -> None:
    """Whoever waited for it may be gone, as its call is then."""
    if not write.cancelled():
        write.exception()


grpc.aio.ServicerContext.register(GuardedContext)


def returns_last_message(method: F) -> F:
    """Marks a streaming method that writes all of its messages but the last, and returns that one.

    It goes out with the status as one piece, which saves a write and its waiting.
    """
    method.returns_last_message = True  # type: ignore[attr-defined]
    return method


class CallInterceptor(grpc.aio.ServerInterceptor):
    def __init__(
        self,
        metrics: Metrics,
        calls: Calls,
        clock: Clock,
        random: Random,
        *,
        default_deadline_seconds: float | None = None,
        unbounded: frozenset[str] = frozenset(),
    ):
        """`unbounded` names the methods (`/weir.executor.v1.ExecutorService/Generate`) that live as long as a channel
        and so get no default deadline."""
        self._observer = Observer(metrics, clock)
        self._calls, self._clock, self._random = calls, clock, random
        self._default_deadline_seconds = default_deadline_seconds
        self._unbounded = unbounded
        # Bounded by the methods that are registered: handlers are the same objects at each call.
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Handler:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._around("unknown", _unimplemented(method)))
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def _wrap(self, method: str, handler: Handler) -> Handler:
        make, function = _arity(handler)
        if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
            # What a servicer inherits from the generated base: a plain function that says "not implemented".
            function = _unimplemented(method)
        if getattr(function, "returns_last_message", False):
            return _last_with_status(self._around(method, function), handler)
        wrapped: Handler = make(
            self._around(method, function),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    def _around(self, method: str, function: Method) -> Answer:
        call = _write_each(function) if inspect.isasyncgenfunction(function) else function

        async def answer(request: Any, context: Any) -> Any:
            request_of = request_from(context.invocation_metadata(), self._random)
            with self._observer.observing(method, request_of) as outcome:
                guarded = GuardedContext(context, self._clock)
                try:
                    with self._calls.running(method):
                        return await self._limited(method, call, request, guarded)
                except BaseException as error:
                    await self._refuse(error, guarded, outcome)

        return answer

    async def _limited(self, method: str, call: Answer, request: Any, context: GuardedContext) -> Any:
        seconds = self._default_deadline_seconds
        if seconds is None or method in self._unbounded or is_infrastructure(method) or time_left(context) is not None:
            return await call(request, context)
        context.deadline = self._clock.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                return await call(request, context)
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded(f"the call brought no deadline and ran for the default {seconds:g} s") from None
            raise

    async def _refuse(self, error: BaseException, context: GuardedContext, outcome: Outcome) -> NoReturn:
        """Ends the call with the status of this error; a call whose client has gone just ends."""
        if isinstance(error, asyncio.CancelledError) and _client_has_gone():
            cut = self._calls.why_cut()
            if cut is None:
                outcome.given_up(by_deadline=time_left(context) == 0.0)
                raise error
            error = cut
        await context.end(to_rpc_status(outcome.failed(error)))


def _client_has_gone() -> bool:
    # Else nobody cancelled this task: something that it awaited was cancelled under it, which is a bug of ours.
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _write_each(function: Callable[[Any, Any], AsyncIterator[Any]]) -> Answer:
    """An async generator as a coroutine that writes. Unlike grpc.aio it closes the generator when the call is
    cancelled during a write, so that what the generator holds is released now and not when garbage is collected."""

    async def write_each(request: Any, context: Any) -> None:
        async with aclosing(function(request, context)) as messages:  # type: ignore[type-var]
            async for message in messages:
                await context.write(message)

    return write_each


def _last_with_status(answer: Answer, handler: Handler) -> Handler:
    """To gRPC this is a method with one response, which it sends with the status; what is written before that goes out
    as any stream's messages do. gRPC keeps no serializer for those, so they are bytes when it gets them."""
    serialize: Serialize = handler.response_serializer  # type: ignore[assignment]  # whatever protoc generates has one

    async def answer_in_bytes(request: Any, context: Any) -> bytes:
        return serialize(await answer(request, _WritesBytes(context, serialize)))

    wrapped: Handler = grpc.unary_unary_rpc_method_handler(
        answer_in_bytes, request_deserializer=handler.request_deserializer
    )
    return wrapped


class _WritesBytes:
    def __init__(self, context: Any, serialize: Serialize) -> None:
        self._context, self._serialize = context, serialize

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        await self._context.write(self._serialize(message))


def _unimplemented(method: str) -> Answer:
    async def unimplemented(_request: Any, _context: Any) -> NoReturn:
        raise Unsupported(f"{method[:200]} is not implemented here")

    return unimplemented


def _arity(handler: Handler) -> tuple[Callable[..., Handler], Method]:
    makers: dict[tuple[bool, bool], tuple[Callable[..., Handler], Any]] = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }
    return makers[handler.request_streaming, handler.response_streaming]
