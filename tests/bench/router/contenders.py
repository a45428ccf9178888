"""Whoever is measured: the two floors without a router, Weir, and its peers, each with its own kind of mock worker."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.environment import MissingPeerError, python_of, with_bench
from bench.peers import Environment
from bench.router.clock_model import write_model
from bench.router.doors import executor_door, http_door, weir_door
from bench.router.load import Door
from bench.router.pace import VARIABLE
from bench.router.processes import family, started, told
from servers import free_port
from weir_chassis.channel import open_channel
from weir_local.stack import until_healthy

_MODEL = "mock"
_READY_SECONDS = 60.0
_MAX_RUNNING = "2048"  # above the slow streams

SMG = Environment("smg", installs=(("smg==1.13.0",),))
DYNAMO = Environment(
    "dynamo",
    installs=(
        # Without what they depend on: one of these packages exists in name only.
        ("--no-deps", "ai-dynamo==1.6.1", "ai-dynamo-runtime==1.6.1"),
        ("aiohttp", "kubernetes", "msgspec", "prometheus-client", "pyzmq", "redis", "tqdm"),
        ("transformers", "zstandard", "pydantic", "uvloop"),
    ),
)


@dataclass(frozen=True, slots=True)
class Ready:
    door: Door
    router: list[int]  # pids; none: there is no router


Open = Callable[[Path], AbstractAsyncContextManager[Ready]]


@dataclass(frozen=True, slots=True)
class Contender:
    """`floor`: whose delays are taken off, because the same mock worker answers there without a router."""

    name: str
    open: Open
    floor: str | None = None


def _variables(scratch: Path) -> dict[str, str]:
    return {**with_bench(), VARIABLE: str(scratch / "pace")}


@asynccontextmanager
async def _mock_workers(scratch: Path) -> AsyncIterator[dict[str, list[str]]]:
    log = scratch / "workers.log"
    with started([sys.executable, "-m", "bench.router.workers"], log, _variables(scratch)) as process:
        yield told(process, log)


@asynccontextmanager
async def _mock_sse(scratch: Path) -> AsyncIterator[str]:
    log = scratch / "sse.log"
    with started([sys.executable, "-m", "bench.router.sse_engine", _MODEL], log, _variables(scratch)) as process:
        yield told(process, log)["url"]


@asynccontextmanager
async def _direct_grpc(scratch: Path) -> AsyncIterator[Ready]:
    async with _mock_workers(scratch) as addresses, executor_door(addresses["executors"][0]) as door:
        yield Ready(door, [])


@asynccontextmanager
async def _direct_http(scratch: Path) -> AsyncIterator[Ready]:
    async with _mock_sse(scratch) as url, http_door(url, _MODEL) as door:
        yield Ready(door, [])


@asynccontextmanager
async def _weir(scratch: Path) -> AsyncIterator[Ready]:
    async with _mock_workers(scratch) as addresses:
        port = free_port()
        settings = {name: ",".join(value) for name, value in addresses.items()}
        settings |= {"PORT": str(port), "MAX_RUNNING": _MAX_RUNNING, "LOG_LEVEL": "warning", "PROCESSORS": _one()}
        variables = {f"WEIR_ROUTER_{name.upper()}": value for name, value in settings.items()}
        with started([sys.executable, "-m", "weir_router"], scratch / "weir.log", variables) as process:
            address = f"127.0.0.1:{port}"
            await _until_serving(address)
            async with weir_door(address) as door:
                yield Ready(door, family(process.pid))


def _one() -> str:
    """The processor that the router is kept on, as its README advises; clients and workers are on any."""
    return str(max(os.sched_getaffinity(0)))


@asynccontextmanager
async def _proxy(scratch: Path) -> AsyncIterator[Ready]:
    async with _mock_workers(scratch) as addresses:
        port = free_port()
        command = [sys.executable, "-m", "bench.router.proxy", addresses["executors"][0], str(port)]
        with started(command, scratch / "proxy.log", with_bench()) as process:
            address = f"127.0.0.1:{port}"
            await _until_listening(address)
            async with weir_door(address) as door:
                yield Ready(door, family(process.pid))


async def _until_listening(address: str) -> None:
    async with asyncio.timeout(_READY_SECONDS), open_channel(address) as channel:
        await channel.channel_ready()


async def _until_serving(address: str) -> None:
    began = time.monotonic()
    while True:
        try:
            await until_healthy(address, 2)
        except Exception:  # it does not listen yet
            if time.monotonic() - began > _READY_SECONDS:
                raise
            await asyncio.sleep(0.1)
        else:
            return


@asynccontextmanager
async def _smg(scratch: Path) -> AsyncIterator[Ready]:
    """Its cheapest way: round robin over workers of OpenAI's protocol, whose bytes it passes on."""
    python = python_of(SMG)
    async with _mock_sse(scratch) as one, _mock_sse(scratch) as two:
        port = free_port()
        command = [str(python.parent / "smg"), "launch", "--worker-urls", one, two, "--policy", "round_robin"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
        with started([*command, "--log-level", "warn"], scratch / "smg.log") as process:
            url = f"http://127.0.0.1:{port}"
            await _until_answering(url)
            async with http_door(url, _MODEL) as door:
                yield Ready(door, family(process.pid))


@asynccontextmanager
async def _dynamo(scratch: Path) -> AsyncIterator[Ready]:
    """Its frontend, with a worker of its own kind: tokens in, tokens out."""
    python = str(python_of(DYNAMO))
    model, variables = write_model(scratch / "model"), _dynamo_variables(scratch)
    async with AsyncExitStack() as stack:
        port = free_port()
        command = [python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
        command += ["--router-mode", "round-robin"]
        frontend = stack.enter_context(started(command, scratch / "dynamo.log", variables))
        worker = [python, "-m", "bench.router.dynamo_worker", str(model), _MODEL]
        stack.enter_context(started(worker, scratch / "dynamo-worker.log", variables))
        url = f"http://127.0.0.1:{port}"
        await _until_answering(url)
        yield Ready(await stack.enter_async_context(http_door(url, _MODEL)), family(frontend.pid))


def _dynamo_variables(scratch: Path) -> Mapping[str, str]:
    """Everything on this machine, and nothing but files to find each other by."""
    here = {"DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_SYSTEM_HOST"}
    return {
        **_variables(scratch),
        **dict.fromkeys(here, "127.0.0.1"),
        "DYN_FILE_KV": str(scratch / "dynamo-kv"),
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_LOG": "error",
        "HF_HUB_OFFLINE": "1",
    }


async def _until_answering(url: str) -> None:
    """Raises MissingPeerError when it does not in time."""
    began, failure = time.monotonic(), ""
    while time.monotonic() - began < _READY_SECONDS:
        try:
            await asyncio.to_thread(_ask, url)
        except (OSError, urllib.error.URLError) as error:
            failure = str(error)
            await asyncio.sleep(0.3)
        else:
            return
    raise MissingPeerError(f"it does not answer: {failure}")


def _ask(url: str) -> None:
    body = {"model": _MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "?"}]}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps({**body, "stream": True}).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        answer.read()


DIRECT_GRPC, DIRECT_HTTP = Contender("direct-grpc", _direct_grpc), Contender("direct-http", _direct_http)
WEIR = Contender("weir", _weir, floor=DIRECT_GRPC.name)
# What grpc.aio takes for as little as a router can do.
PROXY = Contender("bare-proxy", _proxy, floor=DIRECT_GRPC.name)
PEERS = {
    "smg": Contender("smg", _smg, floor=DIRECT_HTTP.name),
    "dynamo": Contender("dynamo", _dynamo, floor=DIRECT_HTTP.name),
}
