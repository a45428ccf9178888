"""`weir adapters`: which LoRA adapters executors hold, and loading and unloading them while they serve."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import click
import grpc
from google.protobuf.json_format import MessageToJson

from weir.executor.v1.executor_pb2 import (
    Adapter,
    ListAdaptersRequest,
    LoadAdapterRequest,
    LoadAdapterResponse,
    UnloadAdapterRequest,
)
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir_chassis.channel import cancelling, open_channel
from weir_chassis.status import from_rpc_error
from weir_client.running import run_async
from weir_client.stack import executor_addresses

if TYPE_CHECKING:
    from weir.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub

_LIST_SECONDS = 10.0
EXECUTORS = click.option(
    "--executor",
    "executors",
    multiple=True,
    metavar="HOST:PORT",
    help="Executor to ask. May be given several times. Default: those of the running 'weir up'.",
)


@click.group()
def adapters() -> None:
    """LoRA adapters that executors hold.

    \b
    Example:
      weir adapters load support ./support-v2
      weir chat "Hello" --adapter support
    """


@adapters.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per adapter.")
@EXECUTORS
@run_async
async def list_command(executors: Sequence[str], as_json: bool) -> None:
    """What each executor has loaded."""
    for address in _addresses(executors):
        async with _connected(address) as stub:
            held = await stub.ListAdapters(ListAdaptersRequest(), timeout=_LIST_SECONDS)
        for adapter in held.adapters:
            click.echo(_json(adapter) if as_json else f"{address:<22} {_line(adapter)}")


@adapters.command("load")
@click.argument("name")
@click.argument("directory")
@click.option("--base-revision", help="The base model's revision for which it was made. Default: not checked.")
@EXECUTORS
@run_async
async def load_command(name: str, directory: str, base_revision: str | None, executors: Sequence[str]) -> None:
    """Load the adapter in DIRECTORY, below each executor's own adapter folder, as NAME. Ctrl-C undoes it."""
    request = LoadAdapterRequest(name=name, directory=directory, base_revision=base_revision)
    for address in _addresses(executors):
        async with _connected(address) as stub:
            call = stub.LoadAdapter(request)
            with cancelling(call):
                async for message in call:
                    click.echo(f"{address:<22} {_progress(message)}", err=not message.HasField("adapter"))


@adapters.command("unload")
@click.argument("name")
@EXECUTORS
@run_async
async def unload_command(name: str, executors: Sequence[str]) -> None:
    """Unload NAME when its last request has ended; new ones are refused at once."""
    for address in _addresses(executors):
        async with _connected(address) as stub:
            call = stub.UnloadAdapter(UnloadAdapterRequest(name=name))
            with cancelling(call):
                async for message in call:
                    left = f"{message.live_requests} requests still use it" if message.live_requests else "unloaded"
                    click.echo(f"{address:<22} {left}", err=bool(message.live_requests))


def _addresses(given: Sequence[str]) -> list[str]:
    """Raises click.ClickException when there is nobody to ask."""
    addresses = executor_addresses(given)
    if not addresses:
        raise click.ClickException("no executor is known here: start one with 'weir up', or name it with --executor")
    return addresses


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[ExecutorServiceAsyncStub]:
    """Raises the WeirError that the executor meant."""
    async with open_channel(address) as channel:
        try:
            yield ExecutorServiceStub(channel)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def _progress(message: LoadAdapterResponse) -> str:
    if message.HasField("adapter"):
        return _line(message.adapter)
    return f"{message.loaded_bytes} of {message.total_bytes} bytes"


def _line(adapter: Adapter) -> str:
    """`support  rank 16  4.2 MiB  fingerprint 0f…  3 live requests`."""
    size = f"{adapter.bytes / (1 << 20):.1f} MiB"
    return (
        f"{adapter.name}  rank {adapter.rank}  {size}  fingerprint {adapter.fingerprint}  "
        f"{adapter.live_requests} live requests"
    )


def _json(adapter: Adapter) -> str:
    return str(MessageToJson(adapter, preserving_proto_field_name=True, indent=None))
