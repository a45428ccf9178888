"""The restarts under the load, and what is left after both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from chaos.rolling.fleet import KINDS, Fleet, running_fleet
from chaos.rolling.load import Clients, Outcomes, undisturbed
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel


@dataclass(frozen=True)
class Restart:
    service: str
    code: int
    seconds: float


@dataclass(frozen=True)
class Rolled:
    outcomes: Outcomes
    restarts: Sequence[Restart]
    leases: float

    @property
    def is_sound(self) -> bool:
        return self.outcomes.is_sound and not self.leases and not any(restart.code for restart in self.restarts)


@dataclass(frozen=True)
class Plan:
    """`streams` at any time, of `tokens` each. `fake` and `drain_seconds`: as `running_fleet` has them."""

    streams: int
    tokens: int
    fake: bool
    drain_seconds: float = 30.0
    # Between two restarts.
    pause_seconds: float = 0.5
    kinds: Sequence[str] = KINDS
    # Of each kind.
    restarts: int = 2


async def roll(directory: Path, plan: Plan, said: Callable[[Restart], None] = lambda _: None) -> Rolled:
    outcomes, stop = Outcomes(), asyncio.Event()
    running = running_fleet(directory, fake=plan.fake, drain_seconds=plan.drain_seconds)
    async with running as fleet, AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(open_channel(address)) for address in fleet.routers]
        stubs = [RouterServiceStub(channel) for channel in channels]
        clients = Clients(stubs, plan.tokens, await undisturbed(stubs[0], plan.tokens))
        async with asyncio.TaskGroup() as tasks:
            for number in range(plan.streams):
                tasks.create_task(clients.run(number, stop, outcomes))
            try:
                restarts = await _restart_all(fleet, plan, said)
            finally:
                stop.set()
        return Rolled(outcomes, restarts, await fleet.leases())


async def _restart_all(fleet: Fleet, plan: Plan, said: Callable[[Restart], None]) -> Sequence[Restart]:
    restarts = []
    for service in [service for kind in plan.kinds for service in fleet.of_kind(kind)[: plan.restarts]]:
        await asyncio.sleep(plan.pause_seconds)
        began = time.monotonic()
        code = await fleet.restart(service)
        restarts.append(Restart(f"{service.name} {service.address}", code, time.monotonic() - began))
        said(restarts[-1])
    await asyncio.sleep(plan.pause_seconds)
    return restarts
