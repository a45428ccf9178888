"""A process of its own, because gRPC looks once, when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys

_PROGRAM = """
import asyncio, sys
import weir_chassis  # as in every service, first
import grpc, uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

async def main():
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        async def call():
            while True:
                await stub.Check(health_pb2.HealthCheckRequest())
        calling = [asyncio.create_task(call()) for _ in range(4)]
        codes = []
        for _ in range(60):
            child = await asyncio.create_subprocess_exec("true")
            codes.append(await child.wait())
        for task in calling:
            task.cancel()
        await asyncio.wait(calling)
    await server.stop(0)
    assert not any(codes), codes

uvloop.run(main())
"""


def test_children_are_started_while_calls_are_under_way() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "fork" not in done.stderr, "gRPC has nothing to say of it"
    assert "chttp2_transport" not in done.stderr, "nor, in lines of its own, of connections that end"
