from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from unit.chassis.call_conformance import LIMIT_SECONDS, ScriptServicer, ScriptStub, add_script_to_server
from weir_chassis import limits
from weir_chassis.channel import cancelling, open_channel


async def unary(request: bytes, context: Any) -> bytes:
    return b"%d" % len(request)


async def serve_at(port: int) -> tuple[grpc.aio.Server, int]:
    grpc.aio.init_grpc_aio()
    servicer = ScriptServicer()
    servicer.unary = unary
    server = grpc.aio.server(options=limits.server_options(100))
    add_script_to_server(servicer, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, bound


def test_both_ends_agree() -> None:
    client, server = dict(limits.client_options()), dict(limits.server_options(7))
    assert server["grpc.max_receive_message_length"] == client["grpc.max_send_message_length"] == 64 << 20
    assert server["grpc.max_concurrent_streams"] == 7
    pings_allowed_each_ms = server["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert isinstance(pings_allowed_each_ms, int)
    assert pings_allowed_each_ms < limits.KEEPALIVE_TIME_MS, "else the server hangs up on its clients"


async def test_a_message_may_be_larger_than_grpcs_default() -> None:
    server, port = await serve_at(0)
    async with open_channel(f"127.0.0.1:{port}") as channel:
        assert await ScriptStub(channel).unary(bytes(5 << 20), timeout=LIMIT_SECONDS) == b"%d" % (5 << 20)
    await server.stop(None)


async def test_a_restarted_worker_is_found_again() -> None:
    server, port = await serve_at(0)
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = ScriptStub(channel)
        assert await stub.unary(b"abc", timeout=LIMIT_SECONDS) == b"3"
        await server.stop(None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.unary(b"abc", timeout=LIMIT_SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, "at once, and without retries of gRPC's own"
        server, _ = await serve_at(port)
        assert await stub.unary(b"abc", timeout=LIMIT_SECONDS, wait_for_ready=True) == b"3"
    await server.stop(None)


async def test_a_connection_may_take_a_while() -> None:
    """A process that has no core for the moment, or is far away, is not one that is lost."""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3 * limits.MIN_RECONNECT_MS / 1000)
        to_server = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass_on(reader, to_server[1]), _pass_on(to_server[0], writer))

    server, port = await serve_at(0)
    between = await asyncio.start_server(late, "127.0.0.1", 0)
    async with between, open_channel(f"127.0.0.1:{between.sockets[0].getsockname()[1]}") as channel:
        assert await ScriptStub(channel).unary(b"abc", timeout=LIMIT_SECONDS) == b"3"
    await server.stop(None)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


async def test_a_taken_port_is_not_shared() -> None:
    server, port = await serve_at(0)
    with pytest.raises(RuntimeError):
        await serve_at(port)
    await server.stop(None)


async def test_cancelling_ends_a_call_however_it_is_left() -> None:
    class Call(grpc.aio.RpcContext):
        ended = 0

        def cancel(self) -> bool:
            self.ended += 1
            return True

        def cancelled(self) -> bool:
            return bool(self.ended)

        def done(self) -> bool:
            return bool(self.ended)

        def time_remaining(self) -> None:
            return None

        def add_done_callback(self, callback: Any) -> None:
            raise NotImplementedError

    call = Call()
    with pytest.raises(asyncio.CancelledError), cancelling(call):
        raise asyncio.CancelledError
    assert call.ended == 1
