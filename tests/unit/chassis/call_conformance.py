"""What a call promises, whatever carries it. Each check takes a `Wire`; `test_inmemory_conformance` runs all of them
over a real connection and in memory.

The test service speaks raw bytes, so that it needs no proto; its four methods do what a check tells them to.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from weir_chassis import errors
from weir_chassis.calls import Calls
from weir_chassis.channel import cancelling
from weir_chassis.deadline import time_left
from weir_chassis.server import Registration
from weir_chassis.status import RemoteError, from_rpc_error
from weir_chassis.telemetry import REQUEST_ID_KEY, TRACEPARENT_KEY, current_request

SERVICE = "weir.test.v1.ScriptService"
# Every check waits at most this long, so that a lost wake-up fails instead of hanging.
LIMIT_SECONDS = 10.0
CHECKS: list[Callable[[Wire], Awaitable[None]]] = []
caller_secret: ContextVar[str] = ContextVar("caller_secret", default="")


class ScriptServicer:
    """Runs what the check put into its attributes."""

    def __init__(self) -> None:
        self.unary: Callable[[bytes, Any], Awaitable[Any]]
        self.downstream: Callable[[bytes, Any], AsyncIterator[Any]]
        self.upstream: Callable[[Any, Any], Awaitable[Any]]
        self.both: Callable[[Any, Any], AsyncIterator[Any]]
        self.both_by_hand: Callable[[Any, Any], Awaitable[None]]
        # Set by handlers that were cancelled or closed.
        self.ended = asyncio.Event()

    async def Unary(self, request: bytes, context: Any) -> Any:
        return await self.unary(request, context)

    async def Downstream(self, request: bytes, context: Any) -> AsyncIterator[Any]:
        try:
            async for message in self.downstream(request, context):
                yield message
        finally:
            self.ended.set()

    async def Upstream(self, requests: Any, context: Any) -> Any:
        return await self.upstream(requests, context)

    async def Both(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self.both(requests, context):
            yield message

    async def BothByHand(self, requests: Any, context: Any) -> None:
        await self.both_by_hand(requests, context)

    def Unimplemented(self, request: bytes, context: Any) -> None:
        """As in a generated base class."""
        context.set_code(StatusCode.UNIMPLEMENTED)
        raise NotImplementedError


def add_script_to_server(servicer: Any, server: grpc.aio.Server) -> None:
    """As generated code does it."""
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(servicer.Unary),
        "Downstream": grpc.unary_stream_rpc_method_handler(servicer.Downstream),
        "Upstream": grpc.stream_unary_rpc_method_handler(servicer.Upstream),
        "Both": grpc.stream_stream_rpc_method_handler(servicer.Both),
        "BothByHand": grpc.stream_stream_rpc_method_handler(servicer.BothByHand),
        "Unimplemented": grpc.unary_unary_rpc_method_handler(servicer.Unimplemented),
        "Status": grpc.unary_unary_rpc_method_handler(
            servicer.Unary, response_serializer=health_pb2.HealthCheckResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


class ScriptStub:
    """As a generated stub."""

    def __init__(self, channel: Any):
        self.unary = channel.unary_unary(f"/{SERVICE}/Unary", _registered_method=True)
        self.downstream = channel.unary_stream(f"/{SERVICE}/Downstream", _registered_method=True)
        self.upstream = channel.stream_unary(f"/{SERVICE}/Upstream", _registered_method=True)
        self.both = channel.stream_stream(f"/{SERVICE}/Both", _registered_method=True)
        self.both_by_hand = channel.stream_stream(f"/{SERVICE}/BothByHand", _registered_method=True)
        self.unimplemented = channel.unary_unary(f"/{SERVICE}/Unimplemented", _registered_method=True)
        self.unknown = channel.unary_unary(f"/{SERVICE}/Unknown", _registered_method=True)
        self.status_as_bytes = channel.unary_unary(f"/{SERVICE}/Status", _registered_method=True)


@dataclass
class Wire:
    channel: grpc.aio.Channel
    servicer: ScriptServicer
    calls: Calls
    stop: Callable[[], Awaitable[None]]

    @property
    def stub(self) -> ScriptStub:
        return ScriptStub(self.channel)


def registration(servicer: ScriptServicer) -> Registration:
    return Registration(add_script_to_server, servicer, SERVICE)


def check(function: Callable[[Wire], Awaitable[None]]) -> Callable[[Wire], Awaitable[None]]:
    CHECKS.append(function)
    return function


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():  # what is waited for is behind a wire
            await asyncio.sleep(0.001)


async def collect(stream: AsyncIterator[Any]) -> list[Any]:
    return [message async for message in stream]


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


# What arrives


@check
async def unary_answers(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        return request.upper()

    wire.servicer.unary = unary
    call = wire.stub.unary(b"abc")
    assert isinstance(call, grpc.aio.UnaryUnaryCall)
    assert await call == b"ABC"
    assert await call == b"ABC", "a call may be awaited again"
    assert await call.code() is StatusCode.OK
    assert call.done()
    assert not call.cancelled()


@check
async def metadata_travels_both_ways(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        sent = dict(context.invocation_metadata())
        await context.send_initial_metadata((("first", sent["weir-test"]),))
        context.set_trailing_metadata((("last-bin", b"\x00\xff"),))
        return b""

    wire.servicer.unary = unary
    call = wire.stub.unary(b"", metadata=(("weir-test", "hello"),))
    assert dict(await call.initial_metadata())["first"] == "hello"
    await call
    assert dict(await call.trailing_metadata())["last-bin"] == b"\x00\xff"


@check
async def metadata_may_be_a_metadata_object(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        return str(dict(context.invocation_metadata())["weir-test"]).encode()

    wire.servicer.unary = unary
    assert await wire.stub.unary(b"", metadata=grpc.aio.Metadata(("weir-test", "x"))) == b"x"


@check
async def server_stream_keeps_order_and_ends(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d" % number

    wire.servicer.downstream = downstream
    call = wire.stub.downstream(b"")
    assert await collect(call) == [b"%d" % number for number in range(100)]
    assert await call.code() is StatusCode.OK


@check
async def server_stream_may_be_empty(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        return
        yield b""

    wire.servicer.downstream = downstream
    assert await collect(wire.stub.downstream(b"")) == []


@check
async def server_stream_may_be_read_by_hand(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    wire.servicer.downstream = downstream
    call = wire.stub.downstream(b"")
    assert [await call.read(), await call.read()] == [b"a", b"b"]
    assert await call.read() is grpc.aio.EOF
    assert await call.read() is grpc.aio.EOF


@check
async def client_stream_from_iterators(wire: Wire) -> None:
    async def upstream(requests: Any, context: Any) -> bytes:
        return b",".join([request async for request in requests])

    async def items() -> AsyncIterator[bytes]:
        for number in range(50):
            yield b"%d" % number

    wire.servicer.upstream = upstream
    assert await wire.stub.upstream(items()) == b",".join(b"%d" % number for number in range(50))
    assert await wire.stub.upstream(iter([b"x", b"y"])) == b"x,y"


@check
async def client_stream_by_hand(wire: Wire) -> None:
    async def upstream(requests: Any, context: Any) -> bytes:
        first, second, end = await context.read(), await context.read(), await context.read()
        assert end is grpc.aio.EOF
        return bytes(first + second)

    wire.servicer.upstream = upstream
    call = wire.stub.upstream()
    await call.write(b"a")
    await call.write(b"b")
    await call.done_writing()
    await call.done_writing()
    assert await call == b"ab"


@check
async def both_directions_interleave(wire: Wire) -> None:
    async def both(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request + b"!"

    wire.servicer.both = both
    call = wire.stub.both()
    for number in range(40):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d!" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


@check
async def both_directions_by_hand_on_the_server(wire: Wire) -> None:
    async def both_by_hand(requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request * 2)

    wire.servicer.both_by_hand = both_by_hand
    assert await collect(wire.stub.both_by_hand(iter([b"a", b"b"]))) == [b"aa", b"bb"]


@check
async def a_call_that_is_cut_in_its_first_write_ends_with_its_error(wire: Wire) -> None:
    async def both_by_hand(requests: Any, context: Any) -> None:
        async with asyncio.timeout(0):
            await context.write(b"a")
            await wait_for_ever()

    wire.servicer.both_by_hand = both_by_hand
    async with asyncio.timeout(LIMIT_SECONDS):
        failure = await failure_of(collect(wire.stub.both_by_hand(iter([b""]))))
    assert failure.code() is StatusCode.INTERNAL


@check
async def a_message_class_may_meet_raw_bytes(wire: Wire) -> None:
    response = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def unary(request: bytes, context: Any) -> Any:
        return response

    wire.servicer.unary = unary
    assert await wire.stub.status_as_bytes(b"") == response.SerializeToString()


@check
async def many_calls_at_once(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0)
        return request

    wire.servicer.unary = unary
    answers = await asyncio.gather(*(_await(wire.stub.unary(b"%d" % number)) for number in range(100)))
    assert answers == [b"%d" % number for number in range(100)]


async def _await(call: Any) -> Any:
    return await call


# How it fails


@check
async def a_weir_error_arrives_with_its_details(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        raise errors.PromptTooLong("token_ids", 9000, 8192)

    wire.servicer.unary = unary
    failure = await failure_of(wire.stub.unary(b""))
    assert failure.code() is StatusCode.INVALID_ARGUMENT
    assert failure.details() == "token_ids: 9000 tokens, the limit is 8192"
    status = rpc_status.from_call(failure)
    violation = error_details_pb2.BadRequest()
    assert any(detail.Unpack(violation) for detail in status.details)
    assert violation.field_violations[0].field == "token_ids"
    error = from_rpc_error(failure)
    assert isinstance(error, errors.PromptTooLong)
    assert error.metadata == {"tokens": "9000", "limit": "8192"}


@check
async def an_error_comes_after_what_was_sent_before_it(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"
        raise errors.WorkerLost("gone", metadata={"worker": "w1"})

    wire.servicer.downstream = downstream
    received = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in wire.stub.downstream(b""):
            received.append(message)  # noqa: PERF401  # what came before the error is the point
    assert received == [b"a", b"b"]
    assert from_rpc_error(caught.value).metadata == {"worker": "w1"}


@check
async def every_shape_carries_errors(wire: Wire) -> None:
    async def refuse(requests: Any, context: Any) -> None:
        raise errors.Overloaded("full")

    async def refuse_stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
        raise errors.Overloaded("full")
        yield b""

    wire.servicer.upstream = wire.servicer.both_by_hand = refuse
    wire.servicer.both = wire.servicer.downstream = refuse_stream
    stub = wire.stub
    # Nothing is written to streams: grpc.aio turns a write that meets the end of its call into INTERNAL.
    shapes = [stub.upstream(iter([])), stub.both(iter([])), stub.both_by_hand(iter([])), stub.downstream(b"")]
    for call in shapes:
        failure = await failure_of(call if hasattr(call, "__await__") else collect(call))
        assert isinstance(from_rpc_error(failure), errors.Overloaded)


@check
async def an_unknown_exception_keeps_its_secrets(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        raise KeyError("the prompt of somebody")

    wire.servicer.unary = unary
    failure = await failure_of(wire.stub.unary(b""))
    assert failure.code() is StatusCode.INTERNAL
    assert "prompt" not in str(failure.details())
    assert isinstance(from_rpc_error(failure), errors.Internal)
    assert from_rpc_error(failure).message == failure.details(), "with details, so not by the code alone"


@check
async def a_bare_abort_is_our_bug(wire: Wire) -> None:
    async def aborts(request: bytes, context: Any) -> None:
        await context.abort(StatusCode.NOT_FOUND, "no such thing")

    async def sets_a_code(request: bytes, context: Any) -> None:
        context.set_code(StatusCode.NOT_FOUND)

    for unary in (aborts, sets_a_code):
        wire.servicer.unary = unary
        failure = await failure_of(wire.stub.unary(b""))
        assert failure.code() is StatusCode.INTERNAL
        assert isinstance(from_rpc_error(failure), RemoteError), "it has details"


@check
async def an_unknown_method_is_unsupported(wire: Wire) -> None:
    for call in (wire.stub.unknown, wire.stub.unimplemented):
        failure = await failure_of(call(b"", timeout=LIMIT_SECONDS))
        assert failure.code() is StatusCode.UNIMPLEMENTED
        error = from_rpc_error(failure)
        assert isinstance(error, RemoteError)
        assert isinstance(error, errors.Unsupported)


@check
async def a_failure_downstream_is_passed_on(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> Any:
        if request == b"inner":
            raise errors.ModelNotFound("m", ["a", "b"])
        return await wire.stub.unary(b"inner")

    wire.servicer.unary = unary
    error = from_rpc_error(await failure_of(wire.stub.unary(b"outer")))
    assert isinstance(error, errors.ModelNotFound)
    assert error.metadata == {"known": "a,b"}


@check
async def a_cancelled_inner_task_does_not_leave_the_caller_waiting(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        inner = asyncio.ensure_future(wait_for_ever())
        inner.cancel()
        await inner
        return b""

    wire.servicer.unary = unary
    assert (await failure_of(wire.stub.unary(b"", timeout=LIMIT_SECONDS))).code() is StatusCode.INTERNAL


@check
async def a_large_error_still_arrives_as_itself(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        raise errors.Overloaded("ü" * 5000, metadata={f"key{number}": "v" * 300 for number in range(100)})

    wire.servicer.unary = unary
    error = from_rpc_error(await failure_of(wire.stub.unary(b"")))
    assert isinstance(error, errors.Overloaded)
    assert error.message.startswith("üüü")


# When it ends


@check
async def the_deadline_ends_both_sides(wire: Wire) -> None:
    left: list[float | None] = []

    async def unary(request: bytes, context: Any) -> bytes:
        left.append(time_left(context))
        try:
            await wait_for_ever()
        finally:
            wire.servicer.ended.set()
        return b""

    wire.servicer.unary = unary
    failure = await failure_of(wire.stub.unary(b"", timeout=0.2))
    assert failure.code() is StatusCode.DEADLINE_EXCEEDED
    assert isinstance(from_rpc_error(failure), errors.DeadlineExceeded)
    async with asyncio.timeout(LIMIT_SECONDS):
        await wire.servicer.ended.wait()
    assert left[0] is not None
    assert 0.0 < left[0] < 0.3  # the header that carries it rounds it up


@check
async def the_deadline_ends_a_stream_that_nobody_writes(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await wait_for_ever()

    wire.servicer.downstream = downstream
    failure = await failure_of(collect(wire.stub.downstream(b"", timeout=0.2)))
    assert failure.code() is StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(LIMIT_SECONDS):
        await wire.servicer.ended.wait()


@check
async def no_deadline_is_none(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        return repr(time_left(context)).encode()

    wire.servicer.unary = unary
    call = wire.stub.unary(b"")
    assert call.time_remaining() is None
    assert await call == b"None"


@check
async def cancelling_a_call_cancels_its_handler(wire: Wire) -> None:
    started = asyncio.Event()

    async def unary(request: bytes, context: Any) -> bytes:
        started.set()
        try:
            await wait_for_ever()
        finally:
            wire.servicer.ended.set()
        return b""

    wire.servicer.unary = unary
    call = wire.stub.unary(b"")
    await started.wait()
    assert call.cancel()
    assert not call.cancel(), "once"
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(LIMIT_SECONDS):
        await wire.servicer.ended.wait()
    assert call.cancelled()
    assert await call.code() is StatusCode.CANCELLED
    await soon(lambda: len(wire.calls) == 0)


@check
async def cancelling_the_waiting_task_cancels_the_handler(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await wait_for_ever()

    wire.servicer.downstream = downstream
    seen: list[bytes] = []

    async def client() -> None:
        async for message in wire.stub.downstream(b""):
            seen.append(message)  # noqa: PERF401  # it must be seen while the stream is open

    task = asyncio.ensure_future(client())
    await soon(lambda: seen == [b"one"])
    task.cancel()
    async with asyncio.timeout(LIMIT_SECONDS):
        await wire.servicer.ended.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


@check
async def a_generator_is_closed_when_cancelled_in_a_write(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 18)

    wire.servicer.downstream = downstream
    call = wire.stub.downstream(b"")
    await call.read()
    call.cancel()
    async with asyncio.timeout(LIMIT_SECONDS):
        await wire.servicer.ended.wait()


@check
async def a_dropped_call_lives_until_it_is_cancelled(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await wait_for_ever()

    async def reads_one() -> None:
        async for _ in wire.stub.downstream(b""):
            break

    wire.servicer.downstream = downstream
    await asyncio.ensure_future(reads_one())
    gc.collect()
    await asyncio.sleep(0.01)
    assert not wire.servicer.ended.is_set(), "nothing may rely on the garbage collector"
    with cancelling(wire.stub.downstream(b"")) as call:
        assert await call.read() == b"one"
    async with asyncio.timeout(LIMIT_SECONDS):
        await wire.servicer.ended.wait()


@check
async def a_slow_reader_holds_the_writer_back(wire: Wire) -> None:
    written = 0
    total = 400

    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal written
        for _ in range(total):
            yield bytes(1 << 16)
            written += 1

    wire.servicer.downstream = downstream
    call = wire.stub.downstream(b"")
    await call.read()
    await _stands_still(lambda: written)
    assert written < total, "the writer ran ahead without bound"
    rest = [await call.read() for _ in range(total - 1)]
    assert len(rest) == total - 1
    assert await call.read() is grpc.aio.EOF


@check
async def a_slow_handler_holds_the_client_back(wire: Wire) -> None:
    written, go = 0, asyncio.Event()
    total = 400

    async def upstream(requests: Any, context: Any) -> bytes:
        await go.wait()
        return b"%d" % len([request async for request in requests])

    async def items() -> AsyncIterator[bytes]:
        nonlocal written
        for _ in range(total):
            yield bytes(1 << 16)
            written += 1

    wire.servicer.upstream = upstream
    call = wire.stub.upstream(items())
    await _stands_still(lambda: written)
    assert written < total
    go.set()
    assert await call == b"%d" % total


async def _stands_still(count: Callable[[], int]) -> None:
    last = -1
    while last != count():
        last = count()
        await asyncio.sleep(0.03)


@check
async def a_handler_may_end_before_the_client(wire: Wire) -> None:
    async def both(requests: Any, context: Any) -> AsyncIterator[bytes]:
        yield await anext(aiter(requests)) + b" is enough"

    wire.servicer.both = both
    call = wire.stub.both()
    await call.write(b"a")
    assert await call.read() == b"a is enough"
    assert await call.read() is grpc.aio.EOF
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"b")


@check
async def an_iterator_that_fails_cancels_the_call(wire: Wire) -> None:
    async def upstream(requests: Any, context: Any) -> bytes:
        try:
            return b"%d" % len([request async for request in requests])
        finally:
            wire.servicer.ended.set()

    async def items() -> AsyncIterator[bytes]:
        yield b"one"
        raise ValueError("the client's own bug")

    wire.servicer.upstream = upstream
    with pytest.raises(asyncio.CancelledError):
        await wire.stub.upstream(items())
    async with asyncio.timeout(LIMIT_SECONDS):
        await wire.servicer.ended.wait()


@check
async def a_server_that_stops_ends_its_calls(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await wait_for_ever()

    wire.servicer.downstream = downstream
    call = wire.stub.downstream(b"")
    assert await call.read() == b"one"
    await wire.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)
    failure = await failure_of(wire.stub.unary(b"", timeout=LIMIT_SECONDS))
    assert isinstance(from_rpc_error(failure), errors.WorkerLost)


@check
async def a_cut_call_says_draining(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await wait_for_ever()

    wire.servicer.downstream = downstream
    call = wire.stub.downstream(b"")
    assert await call.read() == b"one"
    wire.calls.refuse_new()
    refused = from_rpc_error(await failure_of(wire.stub.unary(b"")))
    assert isinstance(refused, errors.Draining)
    assert wire.calls.cut(errors.Draining("time is over")) == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = from_rpc_error(caught.value)
    assert isinstance(error, errors.Draining)
    assert error.message == "time is over"
    await wire.calls.wait_idle()


@check
async def done_callbacks_run_once_on_both_sides(wire: Wire) -> None:
    done: list[str] = []

    async def unary(request: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda _: done.append("server"))
        return b""

    wire.servicer.unary = unary
    call = wire.stub.unary(b"")
    call.add_done_callback(lambda _: done.append("client"))
    await call
    await soon(lambda: len(done) == 2)
    assert sorted(done) == ["client", "server"]


# How it is used wrongly


@check
async def a_closed_channel_refuses(wire: Wire) -> None:
    await wire.channel.close()
    with pytest.raises(grpc.aio.UsageError):
        await wire.stub.unary(b"")


@check
async def closing_a_channel_cancels_its_calls(wire: Wire) -> None:
    async def downstream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await wait_for_ever()

    wire.servicer.downstream = downstream
    call = wire.stub.downstream(b"")
    await call.read()
    await wire.channel.close()
    assert call.cancelled()
    async with asyncio.timeout(LIMIT_SECONDS):
        await wire.servicer.ended.wait()


@check
async def one_style_per_call(wire: Wire) -> None:
    async def both(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    wire.servicer.both = both
    call = wire.stub.both(iter([b"a", b"b"]))
    with pytest.raises(grpc.aio.UsageError):
        await call.write(b"c")
    await call.read()
    with pytest.raises(grpc.aio.UsageError):
        aiter(call)
    call.cancel()


@check
async def nothing_is_written_after_the_half_close(wire: Wire) -> None:
    async def upstream(requests: Any, context: Any) -> bytes:
        return b"%d" % len([request async for request in requests])

    wire.servicer.upstream = upstream
    call = wire.stub.upstream()
    await call.done_writing()
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"late")
    assert await call == b"0"


# What it knows


@check
async def the_request_is_bound_to_its_handler(wire: Wire) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"

    async def unary(request: bytes, context: Any) -> bytes:
        current = current_request()
        assert current is not None
        return f"{current.request_id} {current.trace.trace_id} {current.trace.span_id}".encode()

    wire.servicer.unary = unary
    sent = ((REQUEST_ID_KEY, "req-1"), (TRACEPARENT_KEY, f"00-{trace_id}-00f067aa0ba902b7-01"))
    request_id, trace, span = (await wire.stub.unary(b"", metadata=sent)).split()
    assert (request_id, trace) == (b"req-1", trace_id.encode())
    assert span != b"00f067aa0ba902b7"


@check
async def a_handler_does_not_see_its_callers_context(wire: Wire) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        return caller_secret.get().encode()

    wire.servicer.unary = unary
    caller_secret.set("secret")
    assert await wire.stub.unary(b"") == b""


@check
async def the_channel_knows_its_state(wire: Wire) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        await wire.channel.channel_ready()
    assert wire.channel.get_state() is grpc.ChannelConnectivity.READY
    await wire.channel.close()
    assert wire.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
