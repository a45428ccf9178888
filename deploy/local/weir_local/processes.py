"""The services of a local stack as processes of their own: start, wait until ready, revive, drain, stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from weir_chassis.child_process import ChildProcess, EndedEarlyError, StartError
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


@dataclass(frozen=True, slots=True)
class Events:
    """What the stack tells its user."""

    ready: Callable[[PlannedService, float], None]
    lost: Callable[[PlannedService, int], None]
    changed: Callable[[list[RunningService]], None]


@dataclass(slots=True)
class Child:
    plan: PlannedService
    process: ChildProcess
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
            stack.children.append(Child(plan, await _start(plan, log)))
        await _all_ready(stack.children, events)
        keepers = [asyncio.create_task(_keep_alive(child, stack, events)) for child in stack.children]
        yield stack
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await _stop(stack.children)


async def _start(plan: PlannedService, log: Path) -> ChildProcess:
    return await ChildProcess.start(plan.service, plan.address, plan.environment(), log)


async def _all_ready(children: list[Child], events: Events) -> None:
    tasks = [asyncio.create_task(_until_ready(child, events)) for child in children]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until_ready(child: Child, events: Events) -> None:
    """Raises StartError."""
    began = monotonic()
    await child.process.until_serving(START_SECONDS)
    events.ready(child.plan, monotonic() - began)


async def _keep_alive(child: Child, stack: Stack, events: Events) -> None:
    """Start the child anew whenever it ends by itself, until it does so again and again."""
    began = monotonic()
    try:
        while True:
            code = await child.process.wait()
            events.lost(child.plan, code)
            child.quick_ends = child.quick_ends + 1 if monotonic() - began < STEADY_SECONDS else 1
            if child.quick_ends > MAX_RESTARTS:
                raise StartError(f"{child.plan.service} ended {child.quick_ends} times:\n{child.process.tail()}")
            await asyncio.sleep(_RESTART_PAUSE_SECONDS)
            began, child.process = monotonic(), await _start(child.plan, child.process.log)
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
        child.process.signal(number)
