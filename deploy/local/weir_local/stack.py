"""A local stack from start to stop, as the user sees it: a status line per service."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weir.router.v1.router_pb2 import Model
from weir_chassis.channel import open_channel
from weir_chassis.child_process import StartError
from weir_chassis.health import model_name
from weir_chassis.settings import SettingsError
from weir_chassis.telemetry import configure_logging
from weir_client.client import Client
from weir_client.stack import RunningService, clear_stack, state_directory, write_stack
from weir_local import one_process, processes
from weir_local.placement import HOST, Placement, PlacementError, PlannedService, plan
from weir_local.ports import FreePorts

# Everything serves by now; the router only has to notice.
_SETTLE_SECONDS, _POLL_SECONDS, _CHECK_SECONDS = 30.0, 0.05, 5.0
Remember = Callable[[list[RunningService]], None]
_Placed = tuple[list[RunningService], asyncio.Future[None]]


@dataclass(frozen=True, slots=True)
class LocalStack:
    """All services ready. `failed` is done, with a StartError, when one of them cannot be kept alive."""

    router: str
    failed: asyncio.Future[None]


async def up(placement: Placement) -> None:
    """Run until Ctrl-C or SIGTERM, or until a service cannot be kept alive, which is an error.

    While it starts there is nothing to drain, so a signal ends it; while it drains, a second one does.
    """
    task = asyncio.current_task()
    assert task is not None
    interrupted = _on_signals(task)

    def give_up(_: object) -> None:
        task.cancel()

    interrupted.add_done_callback(give_up)
    try:
        async with running(placement, remember=_remember) as stack:
            interrupted.remove_done_callback(give_up)
            click.secho(f"ready: weir chat --router {stack.router} 'What is a weir?'   (Ctrl-C stops)", bold=True)
            await asyncio.wait([interrupted, stack.failed], return_when=asyncio.FIRST_COMPLETED)
            if stack.failed.done():
                stack.failed.result()
            click.echo("draining…")
    except asyncio.CancelledError:
        raise click.exceptions.Exit(130) from None


@asynccontextmanager
async def running(placement: Placement, remember: Remember | None = None) -> AsyncIterator[LocalStack]:
    """All services ready. Raises click.ClickException, with what to do, when they do not get so far.

    `remember` is told of the services now and whenever one of them is another process.
    """
    state = state_directory()
    (state / "logs").mkdir(parents=True, exist_ok=True)
    remember = remember or _forget
    try:
        _check_port(placement.port)
        plans = plan(placement, FreePorts())
        place = _in_one_process if placement.one_process else _in_processes
        try:
            async with place(plans, state / "logs", remember) as (services, failed):
                await until_healthy(plans[-1].address, len(placement.roles))
                remember(services)
                yield LocalStack(router=plans[-1].address, failed=failed)
        finally:
            clear_stack(state, plans[-1].address)
    except (StartError, FileNotFoundError, SettingsError, PlacementError) as error:
        raise click.ClickException(f"{error}\nlogs: {state / 'logs'}") from error


async def until_healthy(router: str, executors: int) -> None:
    """A router serves before it has a worker; a user's stack is ready when it has all executors and can answer."""
    async with open_channel(router) as channel:
        client = Client(router, channel=channel)
        for _ in range(int(_SETTLE_SECONDS / _POLL_SECONDS)):
            models = await client.models()
            if sum(model.healthy_workers for model in models) == executors and await _answers(channel, models):
                return
            await asyncio.sleep(_POLL_SECONDS)
    raise StartError(f"the router does not find its {executors} executors and their helpers healthy")


async def _answers(channel: grpc.aio.Channel, models: list[Model]) -> bool:
    """Whether the router has, for each model, a worker of every kind."""
    health = health_pb2_grpc.HealthStub(channel)
    asked = [health_pb2.HealthCheckRequest(service=model_name(model.model_version.model)) for model in models]
    try:
        answers = [await health.Check(each, timeout=_CHECK_SECONDS) for each in asked]
    except grpc.RpcError:
        return False
    return all(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers)


@asynccontextmanager
async def _in_processes(plans: list[PlannedService], logs: Path, remember: Remember) -> AsyncIterator[_Placed]:
    events = processes.Events(ready=_print_ready, lost=_print_lost, changed=remember)
    async with processes.started(plans, logs, events) as stack:
        yield stack.services, stack.failed


@asynccontextmanager
async def _in_one_process(plans: list[PlannedService], logs: Path, _: Remember) -> AsyncIterator[_Placed]:
    with (logs / "one-process.log").open("w") as log:
        configure_logging("local", "info", log)
        async with one_process.started(plans, _print_ready) as services:
            yield services, asyncio.get_running_loop().create_future()


def _remember(services: list[RunningService]) -> None:
    write_stack(services, state_directory())


def _forget(_: list[RunningService]) -> None:
    """For a stack that only its own process calls."""


def _print_ready(service: PlannedService, seconds: float) -> None:
    ready = click.style("ready", fg="green")
    click.echo(f"  {service.service:<12} {service.address:<22} {ready} after {seconds:.1f} s")


def _print_lost(service: PlannedService, code: int) -> None:
    lost = click.style(f"ended with code {code}", fg="red")
    click.echo(f"  {service.service:<12} {service.address:<22} {lost}; starting it again")


def _check_port(port: int) -> None:
    """Before anything starts: else whoever has the port would answer for a router that never came up."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: an old connection is no listener
        try:
            probe.bind((HOST, port))
        except OSError as error:
            hint = "does 'weir up' run already? choose another port with --port, 0 for any"
            raise StartError(f"port {port} of {HOST} is taken: {hint}") from error


def _on_signals(task: asyncio.Task[Any]) -> asyncio.Future[None]:
    """Done at the first SIGINT or SIGTERM. The second cancels the task, a third ends the process as it is."""
    loop = asyncio.get_running_loop()
    interrupted: asyncio.Future[None] = loop.create_future()

    def on_signal() -> None:
        if not interrupted.done():
            interrupted.set_result(None)
        elif not task.cancelling():
            task.cancel()
        else:
            os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return interrupted
