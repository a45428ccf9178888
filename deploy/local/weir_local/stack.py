"""A local stack from start to stop, as the user sees it: a status line per service."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from weir_chassis.settings import SettingsError
from weir_chassis.telemetry import configure_logging
from weir_client.client import Client
from weir_client.stack import RunningService, clear_stack, state_directory, write_stack
from weir_local import one_process, processes
from weir_local.placement import HOST, Placement, PlannedService, plan

# Everything serves by now; the router only has to notice.
_SETTLE_SECONDS, _POLL_SECONDS = 30.0, 0.05
_Placed = tuple[list[RunningService], asyncio.Future[None]]


@dataclass(frozen=True, slots=True)
class LocalStack:
    """All services ready. `failed` is done, with a StartError, when one of them cannot be kept alive."""

    router: str
    failed: asyncio.Future[None]


async def up(placement: Placement) -> None:
    """Run until Ctrl-C or SIGTERM, or until a service cannot be kept alive, which is an error."""
    interrupted = _on_signals()
    async with running(placement) as stack:
        click.secho(f"ready: weir chat --router {stack.router} 'What is a weir?'   (Ctrl-C stops)", bold=True)
        await asyncio.wait([interrupted, stack.failed], return_when=asyncio.FIRST_COMPLETED)
        if stack.failed.done():
            stack.failed.result()
        click.echo("draining…")


@asynccontextmanager
async def running(placement: Placement) -> AsyncIterator[LocalStack]:
    """All services ready. Raises click.ClickException, with what to do, when they do not get so far."""
    state = state_directory()
    (state / "logs").mkdir(parents=True, exist_ok=True)
    try:
        plans = plan(placement, free_port)
        place = _in_one_process if placement.one_process else _in_processes
        async with place(plans, state / "logs") as (services, failed):
            await until_healthy(plans[-1].address, placement.executors)
            write_stack(services, state)
            yield LocalStack(router=plans[-1].address, failed=failed)
    except (processes.StartError, FileNotFoundError, SettingsError) as error:
        raise click.ClickException(f"{error}\nlogs: {state / 'logs'}") from error
    finally:
        clear_stack(state)


async def until_healthy(router: str, executors: int) -> None:
    """A router serves before it has a worker; a user's stack is ready when it has all of them."""
    async with Client(router) as client:
        for _ in range(int(_SETTLE_SECONDS / _POLL_SECONDS)):
            if sum(model.healthy_workers for model in await client.models()) == executors:
                return
            await asyncio.sleep(_POLL_SECONDS)
    raise processes.StartError(f"the router does not find its {executors} executors healthy")


@asynccontextmanager
async def _in_processes(plans: list[PlannedService], logs: Path) -> AsyncIterator[_Placed]:
    events = processes.Events(ready=_print_ready, lost=_print_lost, changed=_remember)
    async with processes.started(plans, logs, events) as stack:
        yield stack.services, stack.failed


@asynccontextmanager
async def _in_one_process(plans: list[PlannedService], logs: Path) -> AsyncIterator[_Placed]:
    with (logs / "one-process.log").open("w") as log:
        configure_logging("local", "info", log)
        async with one_process.started(plans, _print_ready) as services:
            yield services, asyncio.get_running_loop().create_future()


def _remember(services: list[RunningService]) -> None:
    write_stack(services, state_directory())


def _print_ready(service: PlannedService, seconds: float) -> None:
    ready = click.style("ready", fg="green")
    click.echo(f"  {service.service:<12} {service.address:<22} {ready} after {seconds:.1f} s")


def _print_lost(service: PlannedService, code: int) -> None:
    lost = click.style(f"ended with code {code}", fg="red")
    click.echo(f"  {service.service:<12} {service.address:<22} {lost}; starting it again")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _on_signals() -> asyncio.Future[None]:
    """Done at the first SIGINT or SIGTERM; a second one ends the process at once, and its children with it."""
    loop = asyncio.get_running_loop()
    interrupted: asyncio.Future[None] = loop.create_future()

    def on_signal() -> None:
        if interrupted.done():
            os._exit(130)
        interrupted.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return interrupted
