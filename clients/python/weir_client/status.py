"""Health and load of each service of the local stack."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import click
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weir.executor.v1.executor_pb2 import GetLoadRequest, GetLoadResponse
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.kvstore.v1.kvstore_pb2 import GetStatsRequest, GetStatsResponse
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.channel import open_channel
from weir_client.stack import RunningService, read_stack, state_directory

_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Report:
    """What one service answered. `health` is a `grpc.health.v1` status by name, or why there was none."""

    service: RunningService
    health: str
    load: Message | None = None

    @property
    def serving(self) -> bool:
        return self.health == "SERVING"

    def to_json(self) -> str:
        load = MessageToDict(self.load, preserving_proto_field_name=True) if self.load else {}
        return json.dumps(
            {"service": self.service.service, "address": self.service.address, "health": self.health, "load": load}
        )

    def to_line(self) -> str:
        health = click.style(f"{self.health:<12}", fg="green" if self.serving else "red")
        return f"{self.service.service:<12} {self.service.address:<22} {health} {_summary(self.load)}".rstrip()


async def ask_all() -> list[Report]:
    """One report for each service. Raises click.ClickException when no stack runs here."""
    services = read_stack(state_directory())
    if not services:
        raise click.ClickException("nothing runs here: start it with 'weir up'")
    return list(await asyncio.gather(*(_ask(service) for service in services)))


async def _ask(service: RunningService) -> Report:
    async with open_channel(service.address) as channel:
        try:
            health = await _health(channel)
            load = await _LOADS[service.service](channel) if service.service in _LOADS else None
        except grpc.RpcError as error:
            return Report(service, error.code().name)
    return Report(service, health, load)


async def _health(channel: grpc.aio.Channel) -> str:
    request = health_pb2.HealthCheckRequest()
    response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=_TIMEOUT_SECONDS)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


async def _executor_load(channel: grpc.aio.Channel) -> Message:
    return await ExecutorServiceStub(channel).GetLoad(GetLoadRequest(), timeout=_TIMEOUT_SECONDS)


async def _kvstore_stats(channel: grpc.aio.Channel) -> Message:
    return await KvStoreServiceStub(channel).GetStats(GetStatsRequest(), timeout=_TIMEOUT_SECONDS)


_LOADS: dict[str, Callable[[grpc.aio.Channel], Awaitable[Message]]] = {
    "executor": _executor_load,
    "kvstore": _kvstore_stats,
}


def _summary(load: Message | None) -> str:
    match load:
        case GetLoadResponse():
            used = load.total_blocks - load.free_blocks
            return (
                f"{load.running_sequences} running, {load.waiting_requests} waiting, "
                f"{used}/{load.total_blocks} blocks in use, step {load.step}"
            )
        case GetStatsResponse():
            return ", ".join(
                f"{t.tier}: {t.blocks} blocks, {t.bytes >> 20} of {t.capacity_bytes >> 20} MiB, {t.hits} hits"
                for t in load.tiers
            )
    return ""
