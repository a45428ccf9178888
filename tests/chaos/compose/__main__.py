"""The images as a stack on a real container engine: up, looked into, asked, its executor killed, asked again, stopped.

    make images && make compose-check

Says what it saw and ends with 1 when something is not so.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from chaos.compose.stack import Stack
from servers import free_ports
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_chassis.errors import WeirError, reason_name
from weir_client.client import Client, user

_PORTS = {"router": 7700, "tokenizer": 7701, "executor": 7702, "kvstore": 7703, "postprocess": 7704}
# What an image without an engine has no use for.
_ENGINES = {"torch", "triton", "transformers", "xgrammar", "numpy", "safetensors"}
_QUESTION, _GREEDY = "What is a weir?", SamplingParameters(temperature=0)
_BACK_SECONDS = 120.0
T = TypeVar("T")


def timed(what: str, call: Callable[[], T]) -> T:
    began = time.monotonic()
    result = call()
    print(f"{what:<60} {time.monotonic() - began:6.2f} s", flush=True)
    return result


def look_inside(stack: Stack, service: str) -> list[str]:
    """What is wrong with a service's image, and with what its process may do."""
    program = Path(__file__).with_name("inside.py").read_text()
    seen = json.loads(stack.python(service, "-", stdin=program))
    print(f"  {service:<12} {len(seen['distributions']):3} distributions, user {seen['user']}", flush=True)
    wrong = {
        "another service's code": set(seen["services"]) - {f"weir_{service}"},
        "an engine's libraries": _ENGINES & set(seen["distributions"]) if service != "executor" else set(),
        "no engine": {"torch"} - set(seen["distributions"]) if service == "executor" else set(),
        "tools": set(seen["tools"]),
        "root": {"it is"} if seen["user"] == 0 else set(),
        "capabilities": {hex(seen["capabilities"])} if seen["capabilities"] else set(),
        "may write to": set(seen["writable"]) ^ {"/tmp"},
    }
    return [f"{service}: {what}: {', '.join(sorted(found))}" for what, found in wrong.items() if found]


def answers_by_name(stack: Stack, service: str) -> None:
    """As Kubernetes' readiness probes ask: by the service's name."""
    (contract,) = import_module(f"weir.{service}.v1.{service}_pb2").DESCRIPTOR.services_by_name.values()
    stack.python(service, "-m", "weir_chassis.probe", f"127.0.0.1:{_PORTS[service]}", contract.full_name)


async def ask(router: str) -> str:
    """One answer, greedy."""
    text = ""
    async with Client(router) as client:
        async for event in client.chat([user(_QUESTION)], sampling=_GREEDY):
            if event.HasField("delta"):
                text += event.delta.text
    return text


async def ask_until_answered(router: str) -> str:
    """While the executor is away the router refuses by type, and says that it is worth another try; that ends."""
    deadline = time.monotonic() + _BACK_SECONDS
    while True:
        try:
            return await ask(router)
        except WeirError as error:
            if time.monotonic() > deadline or not error.row.retryable:
                raise
            print(f"  refused: {reason_name(error.reason)}", flush=True)
            await asyncio.sleep(1)


def lose_the_executor(stack: Stack) -> str:
    stack.kill("executor")
    again = asyncio.run(ask_until_answered(stack.router))
    assert stack.state("executor")["Restarts"] == 1, "it was answered by the one that was killed"
    return again


def main() -> int:
    stack = Stack(f"127.0.0.1:{free_ports(1)[0]}")
    try:
        timed("up, and every health check passed", lambda: stack.compose("up", "--detach", "--wait"))
        problems = [problem for service in _PORTS for problem in look_inside(stack, service)]
        for service in _PORTS:
            timed(f"{service} serves by its name", lambda service=service: answers_by_name(stack, service))  # type: ignore[misc]
        first = timed("an answer", lambda: asyncio.run(ask(stack.router)))
        again = timed("the executor killed, started again by its policy, the answer", lambda: lose_the_executor(stack))
        timed("stopped", lambda: stack.compose("stop"))
        codes = {service: stack.state(service)["ExitCode"] for service in (*_PORTS, "nats", "redis")}
    finally:
        stack.compose("down", "--volumes", "--timeout", "10")
    problems += [f"{service} ended with {code}" for service, code in codes.items() if code]
    if not first or first != again:
        problems.append(f"another answer: {first!r}, and then {again!r}")
    print("\n".join(problems) or f"{first!r}, twice; all ended with 0")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
