"""The services of a local stack as processes of their own: start, wait until ready, revive, drain, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weir_chassis.channel import open_channel
from weir_client.stack import RunningService
from weir_local.placement import PlannedService

# A large model may take minutes to load; a process that dies while loading is noticed at once, not by this clock.
START_SECONDS = 600.0
# Longer than the services' own drain, so that it is they who decide.
STOP_SECONDS = 40.0
# A service that dies this often is not unlucky but wrong; the user should read its log.
MAX_RESTARTS = 5
_RESTART_PAUSE_SECONDS = 0.5
_POLL_SECONDS = 0.05
_LOG_TAIL_LINES = 5


class StartError(Exception):
    """A service did not start, or dies again and again. The message ends with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Events:
    """What the stack tells its user."""

    ready: Callable[[PlannedService, float], None]
    lost: Callable[[PlannedService, int], None]
    changed: Callable[[list[RunningService]], None]


@dataclass(slots=True)
class Child:
    plan: PlannedService
    log: Path
    process: asyncio.subprocess.Process
    restarts: int = 0


@dataclass(slots=True)
class Stack:
    """The running children. `failed` is done, with a StartError, when one of them cannot be kept alive."""

    children: list[Child] = field(default_factory=list)
    failed: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def services(self) -> list[RunningService]:
        return [RunningService(c.plan.service, c.plan.address, c.process.pid) for c in self.children]


@asynccontextmanager
async def started(plans: list[PlannedService], log_directory: Path, events: Events) -> AsyncIterator[Stack]:
    """All services ready and watched. Leaving drains them, the router first, and waits for their exit."""
    stack = Stack()
    keepers: list[asyncio.Task[None]] = []
    try:
        for index, plan in enumerate(plans):
            log = log_directory / f"{plan.service}-{index}.log"
            stack.children.append(Child(plan, log, await _spawn(plan, log)))
        await _all_ready(stack.children, events)
        keepers = [asyncio.create_task(_keep_alive(child, stack, events)) for child in stack.children]
        yield stack
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await _stop(stack.children)


async def _spawn(plan: PlannedService, log: Path) -> asyncio.subprocess.Process:
    module = f"weir_{plan.service}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WEIR_")}
    environment |= plan.environment() | {f"{module}_EXIT_WITH_PARENT".upper(): str(os.getpid())}
    with log.open("wb") as file:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone; we tell the children in our own order
        )


async def _all_ready(children: list[Child], events: Events) -> None:
    tasks = [asyncio.create_task(_until_ready(child, events)) for child in children]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until_ready(child: Child, events: Events) -> None:
    """Raises StartError when the process ends or the time is over."""
    began, service = monotonic(), child.plan.service
    async with open_channel(child.plan.address) as channel:
        while not await _serving(channel):
            if child.process.returncode is not None:
                raise StartError(f"{service} ended with code {child.process.returncode}:\n{_tail(child.log)}")
            if monotonic() - began > START_SECONDS:
                raise StartError(f"{service} was not ready after {START_SECONDS:.0f} s:\n{_tail(child.log)}")
            await asyncio.sleep(_POLL_SECONDS)
    events.ready(child.plan, monotonic() - began)


async def _serving(channel: grpc.aio.Channel) -> bool:
    try:
        response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
    except grpc.RpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def _keep_alive(child: Child, stack: Stack, events: Events) -> None:
    """Start the child anew whenever it ends by itself, until it has done so too often."""
    try:
        while True:
            code = await child.process.wait()
            events.lost(child.plan, code)
            child.restarts += 1
            if child.restarts > MAX_RESTARTS:
                raise StartError(f"{child.plan.service} ended {child.restarts} times:\n{_tail(child.log)}")
            await asyncio.sleep(_RESTART_PAUSE_SECONDS)
            child.process = await _spawn(child.plan, child.log)
            events.changed(stack.services)
            await _until_ready(child, events)
    except StartError as error:
        if not stack.failed.done():
            stack.failed.set_exception(error)


async def _stop(children: list[Child]) -> None:
    """Router first: once it has drained, nobody calls the others."""
    routers = [child for child in children if child.plan.service == "router"]
    others = [child for child in children if child.plan.service != "router"]
    for group in (routers, others):
        for child in group:
            _signal(child, signal.SIGTERM)
        await asyncio.gather(*(_wait_or_kill(child) for child in group))


async def _wait_or_kill(child: Child) -> None:
    try:
        await asyncio.wait_for(child.process.wait(), STOP_SECONDS)
    except (TimeoutError, asyncio.CancelledError):
        _signal(child, signal.SIGKILL)
        await child.process.wait()
        raise


def _signal(child: Child, number: signal.Signals) -> None:
    if child.process.returncode is None:
        child.process.send_signal(number)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
