"""The processes that are measured: a store as it is deployed, and servers that send bytes and do nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.environment import with_bench
from servers import free_port
from weir_chassis.channel import open_channel

_HOST = "127.0.0.1"
_START_SECONDS = 30.0  # importing gRPC and binding a port takes one
_STOP_SECONDS = 10.0


@asynccontextmanager
async def store(scratch: Path, **settings: object) -> AsyncIterator[str]:
    """Its address. Its memory is gone with it."""
    port = free_port()
    environment = {f"WEIR_KVSTORE_{name.upper()}": str(value) for name, value in settings.items()}
    log = scratch / f"kvstore-{port}.log"
    environment |= {"WEIR_KVSTORE_PORT": str(port), "WEIR_KVSTORE_METRICS_PORT": "0", "WEIR_KVSTORE_DRAIN_SECONDS": "1"}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "weir_kvstore", env={**with_bench(), **environment}, stdout=output, stderr=output
        )
    try:
        async with asyncio.timeout(_START_SECONDS), open_channel(f"{_HOST}:{port}") as channel:
            await channel.channel_ready()
        yield f"{_HOST}:{port}"
    finally:
        await _stop(process)


@asynccontextmanager
async def raw_server(kind: str, total_bytes: int, chunk_bytes: int) -> AsyncIterator[int]:
    """The port where whoever asks gets so many bytes: `grpc`, messages of one chunk each, or `socket`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.kvstore.raw", kind, str(total_bytes), str(chunk_bytes)),
        env=with_bench(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_SECONDS):
            yield int(await process.stdout.readline())
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
