"""What only the in-memory placement promises. The rest is in the conformance suite."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from weir_chassis.inmemory import InMemoryChannel, InMemoryServer, connector
from weir_chassis.inmemory.exchange import carry
from weir_chassis.inmemory.pipe import Pipe


class SameAnswer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.request: Any = None
        self.response = HealthCheckResponse(status=HealthCheckResponse.SERVING)

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:
        self.request = request
        return self.response


async def started(servicer: Any) -> InMemoryServer:
    server = InMemoryServer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await server.start()
    return server


async def test_messages_are_passed_by_reference() -> None:
    servicer = SameAnswer()
    async with InMemoryChannel(await started(servicer)) as channel:
        request = HealthCheckRequest(service="x")
        assert await health_pb2_grpc.HealthStub(channel).Check(request) is servicer.response
        assert servicer.request is request


def test_carry_goes_through_bytes_where_the_classes_differ() -> None:
    request = HealthCheckRequest(service="x")
    assert carry(request, HealthCheckRequest.SerializeToString, HealthCheckRequest.FromString) is request
    raw = request.SerializeToString()
    assert carry(request, HealthCheckRequest.SerializeToString, None) == raw
    assert carry(raw, None, HealthCheckRequest.FromString) == request
    assert carry(raw, None, None) is raw


async def test_a_server_that_has_not_started_is_unavailable_until_it_has() -> None:
    server = InMemoryServer()
    channel = InMemoryChannel(server)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/a/b")(b"")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    ready = asyncio.ensure_future(channel.channel_ready())
    await asyncio.sleep(0)
    assert not ready.done()
    await server.start()
    await ready
    await server.stop(None)
    assert channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
    assert not await server.wait_for_termination(1)


async def test_stop_waits_for_calls_that_end_in_time() -> None:
    async def slow(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0.01)
        return b"done"

    server = InMemoryServer()
    server.add_registered_method_handlers("a", {"b": grpc.unary_unary_rpc_method_handler(slow)})
    await server.start()
    call = InMemoryChannel(server).unary_unary("/a/b")(b"")
    await asyncio.sleep(0)
    await server.stop(5)
    assert await call == b"done"


async def test_the_connector_knows_its_servers_by_name() -> None:
    server = await started(SameAnswer())
    opened: list[str] = []

    def otherwise(address: str) -> Any:
        opened.append(address)

    connect = connector({"health": server}, otherwise)
    stub = health_pb2_grpc.HealthStub(connect("memory:health"))
    assert (await stub.Check(HealthCheckRequest())).status == HealthCheckResponse.SERVING
    connect("10.0.0.1:7000")
    assert opened == ["10.0.0.1:7000"]
    with pytest.raises(AssertionError, match="there are"):
        connect("memory:nobody")


async def test_without_our_interceptor_an_exception_is_unknown_as_in_grpc() -> None:
    async def fails(request: bytes, context: Any) -> bytes:
        raise ValueError("plain")

    async def aborts(request: bytes, context: Any) -> None:
        context.set_trailing_metadata((("k", "v"),))
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    server = InMemoryServer()
    handlers: dict[str, Any] = {
        "b": grpc.unary_unary_rpc_method_handler(fails),
        "c": grpc.unary_unary_rpc_method_handler(aborts),
    }
    server.add_registered_method_handlers("a", handlers)
    await server.start()
    channel = InMemoryChannel(server)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/a/b")(b"")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/a/c")(b"")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert dict(caught.value.trailing_metadata()) == {"k": "v"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/a/d")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_pipe_is_bounded_and_keeps_order() -> None:
    pipe = Pipe(room_messages=2)
    assert await pipe.put(1)
    assert await pipe.put(2)
    third = asyncio.ensure_future(pipe.put(3))
    await asyncio.sleep(0)
    assert not third.done()
    assert await pipe.get() == 1
    assert await third
    pipe.close()
    assert [await pipe.get(), await pipe.get(), await pipe.get()] == [2, 3, grpc.aio.EOF]
    assert not await pipe.put(4)


async def test_a_cancelled_reader_or_writer_leaves_the_pipe_usable() -> None:
    pipe = Pipe(room_messages=1)
    reader = asyncio.ensure_future(pipe.get())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert await pipe.put("a")
    writer = asyncio.ensure_future(pipe.put("lost"))
    await asyncio.sleep(0)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    assert await pipe.get() == "a"
    assert len(pipe) == 0


async def test_discarding_wakes_both_ends() -> None:
    full, empty = Pipe(room_messages=1), Pipe()
    await full.put(1)
    writer, reader = asyncio.ensure_future(full.put(2)), asyncio.ensure_future(empty.get())
    await asyncio.sleep(0)
    full.discard()
    empty.discard()
    assert not await writer
    assert await reader is grpc.aio.EOF
