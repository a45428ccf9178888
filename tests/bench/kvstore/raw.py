"""Bytes through gRPC and through a bare socket, with nothing around them: both ends.

python -m bench.kvstore.raw grpc|socket TOTAL_BYTES CHUNK_BYTES     serves, and prints its port
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from weir_chassis.channel import open_channel
from weir_chassis.limits import server_options
from weir_chassis.malloc import keep_freed_memory

_METHOD = "/raw.Raw/Get"


async def receive_messages(port: int) -> float:
    """Bytes per second."""
    async with open_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        began, count = time.perf_counter(), 0
        get: Any = channel.unary_stream(_METHOD)
        async for message in get(b""):
            count += len(message)
        return count / (time.perf_counter() - began)


def receive_bytes(port: int, chunk_bytes: int) -> float:
    """Bytes per second, into the same buffer again and again."""
    buffer = bytearray(chunk_bytes)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began, count = time.perf_counter(), 0
        while got := connection.recv_into(buffer):
            count += got
        return count / (time.perf_counter() - began)


async def _serve_messages(total_bytes: int, chunk_bytes: int) -> None:
    chunk = os.urandom(chunk_bytes)

    async def get(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for _ in range(total_bytes // chunk_bytes):
            yield chunk

    handler = grpc.method_handlers_generic_handler("raw.Raw", {"Get": grpc.unary_stream_rpc_method_handler(get)})
    server = grpc.aio.server(options=server_options(16))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def _serve_bytes(total_bytes: int, chunk_bytes: int) -> None:
    chunk = os.urandom(chunk_bytes)
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            with server.accept()[0] as connection:
                for _ in range(total_bytes // chunk_bytes):
                    connection.sendall(chunk)


if __name__ == "__main__":
    keep_freed_memory()
    _kind, _total, _chunk = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if _kind == "grpc":
        uvloop.run(_serve_messages(_total, _chunk))
    else:
        asyncio.run(asyncio.to_thread(_serve_bytes, _total, _chunk))
