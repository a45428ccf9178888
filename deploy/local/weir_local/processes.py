"""The services of a local stack as processes of their own: start, wait until ready, revive, drain, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
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
# A service that dies this often, each time within STEADY_SECONDS, is not unlucky but wrong: the user should read its
# log.
MAX_RESTARTS, STEADY_SECONDS = 5, 60.0
_RESTART_PAUSE_SECONDS = 0.5
_POLL_SECONDS = 0.05
_LOG_TAIL_LINES = 5


class StartError(Exception):
    """A service did not start, or dies again and again. The message ends with the last lines of its log."""


class EndedEarlyError(StartError):
    """The process ended before it was ready."""


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
    # Ends in a row that came within STEADY_SECONDS of the start.
    quick_ends: int = 0


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
            log.unlink(missing_ok=True)
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
    with log.open("ab") as file:  # what a child that died had to say stays above what its successor says
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
    """Raises EndedEarlyError when the process ends, StartError when the time is over."""
    began, service = monotonic(), child.plan.service
    async with open_channel(child.plan.address) as channel:
        while not await _serving(channel):
            if child.process.returncode is not None:
                raise EndedEarlyError(f"{service} ended with code {child.process.returncode}:\n{_tail(child.log)}")
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
    """Start the child anew whenever it ends by itself, until it does so again and again."""
    began = monotonic()
    try:
        while True:
            code = await child.process.wait()
            events.lost(child.plan, code)
            child.quick_ends = child.quick_ends + 1 if monotonic() - began < STEADY_SECONDS else 1
            if child.quick_ends > MAX_RESTARTS:
                raise StartError(f"{child.plan.service} ended {child.quick_ends} times:\n{_tail(child.log)}")
            await asyncio.sleep(_RESTART_PAUSE_SECONDS)
            began, child.process = monotonic(), await _spawn(child.plan, child.log)
            events.changed(stack.services)
            with suppress(EndedEarlyError):  # one more end, which the next round counts
                await _until_ready(child, events)
    except (StartError, OSError) as error:
        if not stack.failed.done():
            stack.failed.set_exception(StartError(str(error)))


async def _stop(children: list[Child]) -> None:
    """Router first: once it has drained, nobody calls the others.

    Those who do not end in time are killed, and all who are left when this is cancelled.
    """
    routers = [child for child in children if child.plan.service == "router"]
    others = [child for child in children if child.plan.service != "router"]
    try:
        for group in (routers, others):
            _signal(group, signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(_ended(group), STOP_SECONDS)
    finally:
        _signal(children, signal.SIGKILL)
        await _ended(children)


async def _ended(children: list[Child]) -> None:
    await asyncio.gather(*(child.process.wait() for child in children))


def _signal(children: list[Child], number: signal.Signals) -> None:
    for child in children:
        if child.process.returncode is None:
            with suppress(ProcessLookupError):
                child.process.send_signal(number)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
