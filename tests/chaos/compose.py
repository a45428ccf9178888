"""The images as a stack on a real container engine: up and healthy, asked, its executor killed, asked again, stopped.

    make images && make compose-check

Says what it saw and ends with 1 when something is not so. `DOCKER` names the command; which engine it reaches is its
own affair.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from servers import free_ports
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_client.client import Client, user

_ROOT = Path(__file__).parents[2]
# A project and a port of its own: who runs the stack already keeps it.
_FILE, _PROJECT = str(_ROOT / "deploy/compose/compose.yaml"), "weir-check"
_COMPOSE = [os.environ.get("DOCKER", "docker"), "compose", "--project-name", _PROJECT, "--file", _FILE]
_ROUTER, _UP_SECONDS = f"127.0.0.1:{free_ports(1)[0]}", 300.0
_QUESTION, _GREEDY = "What is a weir?", SamplingParameters(temperature=0)


def compose(*arguments: str) -> str:
    done = subprocess.run(
        [*_COMPOSE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=_UP_SECONDS,
        env={**os.environ, "WEIR_PUBLISH": _ROUTER},
    )
    if done.returncode:
        raise SystemExit(f"docker compose {' '.join(arguments)}:\n{done.stderr[-2000:]}")
    return done.stdout


def containers() -> Mapping[str, Mapping[str, Any]]:
    """By service, as `docker compose ps` tells them."""
    lines = compose("ps", "--all", "--format", "json").splitlines()
    return {each["Service"]: each for each in map(json.loads, lines)}


def say(what: str, took: float) -> None:
    print(f"{what:<60} {took:6.1f} s", flush=True)


def timed(what: str, call: Callable[[], Any]) -> Any:
    began = time.monotonic()
    result = call()
    say(what, time.monotonic() - began)
    return result


async def ask() -> str:
    """One answer, greedy."""
    text = ""
    async with Client(_ROUTER) as client:
        async for event in client.chat([user(_QUESTION)], sampling=_GREEDY):
            if event.HasField("delta"):
                text += event.delta.text
    return text


async def ask_until_answered() -> str:
    """While the executor is away the router refuses by type; that ends."""
    deadline = time.monotonic() + _UP_SECONDS
    while True:
        try:
            return await ask()
        except Exception as error:
            if time.monotonic() > deadline:
                raise
            print(f"  not yet: {type(error).__name__}", flush=True)
            await asyncio.sleep(2)


def main() -> int:
    try:
        timed("up, and every health check passed", lambda: compose("up", "--detach", "--wait"))
        first = timed("an answer", lambda: asyncio.run(ask()))
        timed("the executor killed and started again", lambda: compose("restart", "--timeout", "0", "executor"))
        again = timed("the same answer", lambda: asyncio.run(ask_until_answered()))
        timed("stopped", lambda: compose("stop"))
        codes = {service: each["ExitCode"] for service, each in containers().items()}
    finally:
        compose("down", "--volumes", "--timeout", "10")
    print(f"{first!r}\nexit codes: {codes}")
    return 0 if first and first == again and not any(codes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
