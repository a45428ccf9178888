"""`weir kv`: what the KV store holds and how it serves, how it is configured, and traces played to its policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Final

import click
import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson

from weir.kvstore.v1.kvstore_pb2 import GetStatsRequest, GetStatsResponse, SourceStats, TenantStats, TierStats
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.status import from_rpc_error
from weir_client.printing import columns, size
from weir_client.running import load_command, run_async
from weir_client.stack import kvstore_address

if TYPE_CHECKING:
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub

_SECONDS = 10.0
# Needs the store itself, and not only somebody who answers for it.
_TRACE: Final = EntryPoint("trace", "weir_client.kv_trace:trace", "weir.commands")

KVSTORE = click.option(
    "--kvstore",
    envvar="WEIR_KVSTORE",
    metavar="HOST:PORT",
    help="Store to ask. Default: that of the running 'weir up'.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), _TRACE.name])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load_command(_TRACE) if cmd_name == _TRACE.name else super().get_command(ctx, cmd_name)


@click.group(cls=_Commands)
def kv() -> None:
    """The KV store: what its tiers hold, how they are configured, which policy suits which traffic.

    \b
    Example:
      weir kv stats
      weir kv trace --synthetic conversations
    """


@kv.command()
@AS_JSON
@KVSTORE
@run_async
async def stats(kvstore: str | None, as_json: bool) -> None:
    """What each tier holds and has served, each tenant's bytes, and the prefill that was saved.

    \b
    Example:
      weir kv stats --json
    """
    answer = await _ask(kvstore)
    click.echo(_json(answer) if as_json else "\n".join(stats_text(answer)))


@kv.command()
@AS_JSON
@KVSTORE
@run_async
async def tiers(kvstore: str | None, as_json: bool) -> None:
    """Which tiers are in force, with their rules and faults, and why a newer file is not.

    \b
    Example:
      weir kv tiers
    """
    answer = await _ask(kvstore)
    click.echo(_tiers_json(answer) if as_json else tiers_text(answer))


def stats_text(answer: GetStatsResponse) -> Iterator[str]:
    """Tables, those that have rows."""
    yield _table(_HELD, map(_held, answer.tiers))
    yield ""
    yield _table(_SERVED, map(_served, answer.tiers))
    if answer.tenants:
        yield ""
        yield _table(_TENANTS, map(_tenant, answer.tenants))
    if answer.sources:
        yield ""
        yield _table(_SOURCES, map(_source, answer.sources))
    yield ""
    yield (
        f"{answer.saved_seconds:.1f} s of prefill saved; {answer.live_leases} leases live, "
        f"{answer.expired_leases} expired; {answer.open_puts} puts open"
    )
    yield from (click.style(f"{tier.tier}: {tier.fault}", fg="red") for tier in answer.tiers if tier.fault)


def tiers_text(answer: GetStatsResponse) -> str:
    """What is in force as a file would say it, how each tier does, and what is refused."""
    lines = [_table(_RULES, map(_rules, answer.tiers))]
    if answer.config:
        heading = click.style("# in force, with what the file leaves out", fg="bright_black")
        lines += ["", heading, answer.config.rstrip()]
    if answer.config_error:
        refused = [click.style(f"refused: {line}", fg="red") for line in answer.config_error.splitlines()]
        lines += ["", *refused, "  the store looks at the file again when it changes, or on SIGHUP"]
    return "\n".join(lines)


_HELD = ("tier", "blocks", "bytes", "of", "used", "policy", "ttl")
_SERVED = (
    "tier", "hits", "misses", "hit rate", "stored", "evicted", "expired", "refused", "not admitted", "promoted",
    "demoted", "dropped", "corrupt", "read", "written",
)  # fmt: skip
_TENANTS = ("tenant", "tier", "bytes", "quota")
_SOURCES = ("executor", "blocks", "told")
_RULES = ("tier", "state", "capacity", "policy", "ttl")


def _held(tier: TierStats) -> Sequence[str]:
    used = f"{tier.bytes / tier.capacity_bytes:.0%}" if tier.capacity_bytes else "-"
    capacity = size(tier.capacity_bytes) if tier.capacity_bytes else "-"
    return (tier.tier, str(tier.blocks), size(tier.bytes), capacity, used, tier.policy or "-", _ttl(tier))


def _served(tier: TierStats) -> Sequence[str]:
    asked = tier.hits + tier.misses
    counts = (
        tier.stored, tier.evicted, tier.expired, tier.refused, tier.not_admitted, tier.promoted, tier.demoted,
        tier.dropped, tier.corrupt,
    )  # fmt: skip
    rate = f"{tier.hits / asked:.1%}" if asked else "-"
    moved = (size(tier.read_bytes), size(tier.written_bytes))
    return (tier.tier, str(tier.hits), str(tier.misses), rate, *map(str, counts), *moved)


def _tenant(tenant: TenantStats) -> Sequence[str]:
    quota = size(tenant.max_bytes) if tenant.max_bytes else "-"
    return (tenant.tenant or "(none)", tenant.tier, size(tenant.bytes), quota)


def _source(source: SourceStats) -> Sequence[str]:
    return (source.source, str(source.blocks), f"{_seconds(source.age):.0f} s ago")


def _rules(tier: TierStats) -> Sequence[str]:
    capacity = size(tier.capacity_bytes) if tier.capacity_bytes else "-"
    return (tier.tier, tier.fault or "serving", capacity, tier.policy or "-", _ttl(tier))


def _ttl(tier: TierStats) -> str:
    seconds = _seconds(tier.ttl)
    if not tier.HasField("ttl"):
        return "never"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def _seconds(duration: Duration) -> float:
    return duration.ToTimedelta().total_seconds()


def _table(header: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    return columns([header, *rows])


async def _ask(kvstore: str | None) -> GetStatsResponse:
    """Raises the WeirError that the store meant, and click.ClickException when there is none to ask."""
    address = kvstore_address(kvstore)
    if address is None:
        raise click.ClickException("no store is known here: start one with 'weir up', or name it with --kvstore")
    async with open_channel(address) as channel:
        stub: KvStoreServiceAsyncStub = KvStoreServiceStub(channel)
        try:
            return await stub.GetStats(GetStatsRequest(), timeout=_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def _tiers_json(answer: GetStatsResponse) -> str:
    return _json(GetStatsResponse(tiers=answer.tiers, config=answer.config, config_error=answer.config_error))


def _json(answer: GetStatsResponse) -> str:
    text = MessageToJson(
        answer, preserving_proto_field_name=True, indent=None, always_print_fields_with_no_presence=True
    )
    return str(text)
