"""`weir operations`: loading and unloading models and adapters on the whole fleet, through a router."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import click
import grpc

from weir.router.v1 import fleet_pb2 as pb
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir_chassis.channel import cancelling, open_channel
from weir_chassis.errors import reason_name
from weir_chassis.status import from_failure, from_rpc_error
from weir_client.options import ROUTER
from weir_client.printing import columns, size
from weir_client.running import run_async
from weir_client.stack import router_address

if TYPE_CHECKING:
    from weir.router.v1.fleet_pb2_grpc import FleetServiceAsyncStub

_SECONDS = 15.0
ON = click.option("--on", "targets", multiple=True, metavar="HOST:PORT", help="Only there. May be given several times.")
DETACH = click.option("--detach", is_flag=True, help="Print the operation's id and do not wait for its end.")


@click.group()
def operations() -> None:
    """Load and unload models and LoRA adapters on the fleet, through a router.

    \b
    Example:
      weir operations load-model llama-8b --model small
      weir operations load-adapter law lora/law
      weir operations list
    """


@operations.command("load-model")
@click.argument("directory")
@click.option("--model", default="", help="What clients will call it. Default: the directory's name.")
@ON
@DETACH
@ROUTER
@run_async
async def load_model(directory: str, model: str, targets: Sequence[str], detach: bool, router: str | None) -> None:
    """Start an executor for the model in DIRECTORY, below each model host's model folder."""
    action = pb.StartOperationRequest(executors=targets, load_model=pb.LoadModel(directory=directory, model=model))
    await _start(action, detach, router)


@operations.command("unload-model")
@click.argument("model")
@ON
@DETACH
@ROUTER
@run_async
async def unload_model(model: str, targets: Sequence[str], detach: bool, router: str | None) -> None:
    """End MODEL's executors on the model hosts, when what lives on them has ended."""
    await _start(pb.StartOperationRequest(executors=targets, unload_model=pb.UnloadModel(model=model)), detach, router)


@operations.command("load-adapter")
@click.argument("name")
@click.argument("directory")
@click.option("--model", default="", help="Its base. Default: the only model there is.")
@ON
@DETACH
@ROUTER
@run_async
async def load_adapter(
    name: str, directory: str, *, model: str, targets: Sequence[str], detach: bool, router: str | None
) -> None:
    """Load the adapter in DIRECTORY, below each executor's adapter folder, as NAME on every executor of its model."""
    adapter = pb.LoadAdapter(name=name, directory=directory, model=model)
    await _start(pb.StartOperationRequest(executors=targets, load_adapter=adapter), detach, router)


@operations.command("unload-adapter")
@click.argument("name")
@click.option("--model", default="", help="Its base. Default: the only model there is.")
@ON
@DETACH
@ROUTER
@run_async
async def unload_adapter(name: str, model: str, targets: Sequence[str], detach: bool, router: str | None) -> None:
    """Unload NAME wherever it is, when its last request there has ended."""
    adapter = pb.UnloadAdapter(name=name, model=model)
    await _start(pb.StartOperationRequest(executors=targets, unload_adapter=adapter), detach, router)


@operations.command("list")
@ROUTER
@run_async
async def list_command(router: str | None) -> None:
    """What this router has under way, and what it did last."""
    async with _connected(router) as stub:
        answer = await stub.ListOperations(pb.ListOperationsRequest(), timeout=_SECONDS)
    if answer.operations:
        click.echo(columns([("OPERATION", "STATE", "ACTION"), *map(_row, answer.operations)]))


@operations.command("watch")
@click.argument("operation_id")
@ROUTER
@run_async
async def watch_command(operation_id: str, router: str | None) -> None:
    """Follow an operation to its end; exit with 1 when it failed somewhere. Ctrl-C ends the watching only."""
    async with _connected(router) as stub:
        await _watch(stub, operation_id)


@operations.command("cancel")
@click.argument("operation_id")
@ROUTER
@run_async
async def cancel_command(operation_id: str, router: str | None) -> None:
    """Begin nothing more of an operation; what was begun is finished."""
    async with _connected(router) as stub:
        await stub.CancelOperation(pb.CancelOperationRequest(operation_id=operation_id), timeout=_SECONDS)


async def _start(request: pb.StartOperationRequest, detach: bool, router: str | None) -> None:
    async with _connected(router) as stub:
        operation = (await stub.StartOperation(request, timeout=_SECONDS)).operation
        if detach:
            click.echo(operation.operation_id)
        else:
            await _watch(stub, operation.operation_id)


async def _watch(stub: FleetServiceAsyncStub, operation_id: str) -> None:
    """A line whenever something has changed at a target."""
    shown: dict[str, str] = {}
    last = pb.Operation()
    call = stub.WatchOperation(pb.WatchOperationRequest(operation_id=operation_id))
    with cancelling(call):
        async for message in call:
            last = message.operation
            for progress in last.executors:
                line = progress_line(progress)
                if shown.get(progress.executor) != line:
                    click.echo(f"{progress.executor:<22} {line}", err=not progress.done)
                shown[progress.executor] = line
    if any(progress.HasField("failure") for progress in last.executors):
        sys.exit(1)


def progress_line(progress: pb.OperationProgress) -> str:
    """`1.2 GiB of 15.0 GiB`, `done`, `failed: NOT_FOUND: …`."""
    if progress.HasField("failure"):
        error = from_failure(progress.failure)
        return f"failed: {reason_name(error.reason)}: {error.message}"
    if progress.done:
        return "done"
    return f"{size(progress.done_bytes)} of {size(progress.total_bytes)}" if progress.total_bytes else "waiting"


def _row(operation: pb.Operation) -> tuple[str, str, str]:
    failed = sum(progress.HasField("failure") for progress in operation.executors)
    done = sum(progress.done for progress in operation.executors)
    state = f"{done} of {len(operation.executors)} done" + (f", {failed} failed" if failed else "")
    return operation.operation_id, state, operation.action


@asynccontextmanager
async def _connected(router: str | None) -> AsyncIterator[FleetServiceAsyncStub]:
    """Raises the WeirError that the router meant."""
    async with open_channel(router_address(router)) as channel:
        try:
            yield FleetServiceStub(channel)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
