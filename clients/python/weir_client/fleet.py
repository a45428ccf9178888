"""`weir fleet`: who is there, as a router sees it."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import click
import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson

from weir.fleet.v1.instance_pb2 import InstanceKind
from weir.router.v1 import fleet_pb2 as pb
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.errors import WeirError
from weir_chassis.status import from_rpc_error
from weir_client.options import ROUTER
from weir_client.printing import columns, error_line
from weir_client.running import run_async
from weir_client.stack import router_address

_SECONDS: Final = 15.0
_HEADINGS = (
    *("kind", "address", "state", "source", "region", "models"),
    *("for", "ramp", "here", "running", "waiting", "tokens/s", "free blocks"),
)
# Of the headings, those of texts.
_TEXTS = 6


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option("--watch", is_flag=True, help="Print it again and again, until Ctrl-C.")
@click.option("--every", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds, of --watch.")
@ROUTER
@run_async
async def fleet(as_json: bool, watch: bool, every: float, router: str | None) -> None:
    """Who is there, as a router sees it, and what is missing. Exits with 1 when something is.

    The column 'here' is what this router has given to a worker: requests, and tokens still to come.

    \b
    Example:
      weir fleet --watch
    """
    async with open_channel(router_address(router)) as channel:
        while watch:
            click.clear()
            click.echo(await _shown(channel, as_json=as_json))
            await asyncio.sleep(every)
        seen = await _ask(channel)
    click.echo(_as_json(seen) if as_json else _as_text(seen))
    if seen.problems:
        sys.exit(1)


async def _shown(channel: grpc.aio.Channel, *, as_json: bool) -> str:
    """A router that does not answer may be back at the next look."""
    try:
        seen = await _ask(channel)
    except WeirError as error:
        return error_line(error)
    return _as_json(seen) if as_json else _as_text(seen)


async def _ask(channel: grpc.aio.Channel) -> pb.GetFleetResponse:
    """Raises the WeirError that the router meant."""
    try:
        return await FleetServiceStub(channel).GetFleet(pb.GetFleetRequest(), timeout=_SECONDS)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _as_json(seen: pb.GetFleetResponse) -> str:
    return str(MessageToJson(seen, preserving_proto_field_name=True, indent=None))


def _as_text(seen: pb.GetFleetResponse) -> str:
    table = columns([_HEADINGS, *map(_row, seen.workers)], left=_TEXTS)
    aliases = [_alias_line(alias) for alias in seen.aliases]
    return "\n".join([table, *aliases, *(click.style(f"! {problem}", fg="yellow") for problem in seen.problems)])


def _row(worker: pb.Worker) -> tuple[str, ...]:
    instance = worker.instance
    kind = InstanceKind.Name(instance.kind).removeprefix("INSTANCE_KIND_").lower()
    state = pb.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower()
    models = ",".join(f"{one.model}@{(one.revision or one.tokenizer_hash)[:8]}" for one in instance.model_versions)
    return (
        *(kind, instance.address, state, worker.source or "left", instance.region or "-", models or "-"),
        *(_short(worker.since), f"{worker.ramp:.0%}", _routed(worker), *_load(worker)),
    )


def _routed(worker: pb.Worker) -> str:
    tokens = f"/{worker.routed_tokens}" if worker.routed_tokens else ""
    return f"{worker.routed_requests}{tokens}"


def _load(worker: pb.Worker) -> tuple[str, str, str, str]:
    if not worker.HasField("load"):
        return "-", "-", "-", "-"
    load = worker.load
    blocks = f"{load.free_blocks}/{load.total_blocks}"
    return str(load.running_sequences), str(load.waiting_requests), f"{load.tokens_per_second:.0f}", blocks


def _alias_line(alias: pb.Alias) -> str:
    """`chat: demo@r1 90%, demo@r2 0% (rolled back: …)`."""
    targets = ", ".join(
        f"{target.model}{'@' * bool(target.revision)}{target.revision} {target.weight_now:g}"
        f"{f' ({target.reason})' if target.reason else ''}"
        for target in alias.targets
    )
    return f"alias {alias.name}: {targets}"


def _short(duration: Duration) -> str:
    """`12s`, `5m`, `3h`, `2d`."""
    seconds = duration.ToTimedelta().total_seconds()
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
