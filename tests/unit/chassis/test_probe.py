"""The health check of containers: a command whose exit code says whether a service serves."""

from __future__ import annotations

import asyncio
import sys

import grpc
from grpc_health.v1 import health_pb2_grpc

from weir_chassis.health import Health
from weir_chassis.limits import server_options
from weir_chassis.probe import is_serving
from weir_chassis.testing import serve_in_memory


async def test_what_serves_is_told_from_what_does_not() -> None:
    health = Health()
    async with serve_in_memory(health=health) as channel:
        assert not await is_serving(channel)
        health.set("", True)
        health.set("model:m", False)
        assert await is_serving(channel)
        assert not await is_serving(channel, "model:m")
        assert not await is_serving(channel, "nobody")


async def test_the_command_ends_with_0_only_where_it_serves() -> None:
    health, server = Health(), grpc.aio.server(options=server_options(16))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert await _probe(f"127.0.0.1:{port}") == 1
        health.set("", True)
        health.set("model:m", False)
        assert await _probe(f"127.0.0.1:{port}") == 0
        assert await _probe(f"127.0.0.1:{port}", "model:m") == 1
    finally:
        await server.stop(None)
    assert await _probe(f"127.0.0.1:{port}") == 1


async def _probe(*arguments: str) -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "weir_chassis.probe", *arguments)
    return await process.wait()
