"""Asks a service whether it serves: `python -m weir_chassis.probe HOST:PORT [NAME]` ends with 0 when it does.

For container engines, whose health checks are commands; Kubernetes asks by gRPC itself. NAME is a health name, such as
`weir.router.v1.RouterService` or `model:demo`; without one the whole process is meant.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weir_chassis.channel import open_channel
from weir_chassis.health import PROCESS

# Health is answered from memory: whoever takes longer does not answer.
_SECONDS = 3.0


async def is_serving(channel: grpc.aio.Channel, name: str = PROCESS, seconds: float = _SECONDS) -> bool:
    """False where nobody answers, too."""
    try:
        response = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=name), timeout=seconds
        )
    except grpc.RpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def _ask(address: str, name: str) -> int:
    async with open_channel(address) as channel:
        return 0 if await is_serving(channel, name) else 1


if __name__ == "__main__":
    _, _address, *_name = sys.argv
    sys.exit(asyncio.run(_ask(_address, _name[0] if _name else PROCESS)))
