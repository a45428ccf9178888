"""Health and load of each service of the local stack, or of one executor; and what lives in executors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import click
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weir.executor.v1.executor_pb2 import (
    ExecutorRole,
    GetLoadRequest,
    GetLoadResponse,
    GetModelInfoRequest,
    ListRequestsRequest,
    RequestState,
    WaitingReason,
)
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
    requests: Sequence[RequestState] = ()
    role: str = ""  # of an executor: "prefill", "decode", "both"

    @property
    def serving(self) -> bool:
        return self.health == "SERVING"

    def to_json(self) -> str:
        load = MessageToDict(self.load, preserving_proto_field_name=True) if self.load else {}
        report = {"service": self.service.service, "address": self.service.address, "health": self.health, "load": load}
        requests = [MessageToDict(state, preserving_proto_field_name=True) for state in self.requests]
        parts = {"role": self.role, "requests": requests}
        return json.dumps({**report, **{name: part for name, part in parts.items() if part}})

    def to_line(self) -> str:
        """The service, and a line for each of its requests below it."""
        health = click.style(f"{self.health:<12}", fg="green" if self.serving else "red")
        role = f"{self.role}: " if self.role not in ("", "both") else ""
        line = f"{self.service.service:<12} {self.service.address:<22} {health} {role}{_summary(self.load)}".rstrip()
        return "\n".join([line, *map(_request_line, self.requests)])


async def ask_all(executor: str | None = None, *, with_requests: bool = False) -> list[Report]:
    """One report for each service that runs here, or for the executor at this address.

    Raises click.ClickException when no stack runs here.
    """
    services = [RunningService("executor", executor, 0)] if executor else read_stack(state_directory())
    if not services:
        raise click.ClickException("nothing runs here: start it with 'weir up'")
    return list(await asyncio.gather(*(_ask(service, with_requests=with_requests) for service in services)))


async def _ask(service: RunningService, *, with_requests: bool) -> Report:
    async with open_channel(service.address) as channel:
        try:
            health = await _health(channel)
            load = await _LOADS[service.service](channel) if service.service in _LOADS else None
            is_executor = service.service == "executor"
            role = await _role(channel) if is_executor else ""
            requests = await _requests(channel) if with_requests and is_executor else ()
        except grpc.RpcError as error:
            return Report(service, error.code().name)
    return Report(service, health, load, requests, role)


async def _role(channel: grpc.aio.Channel) -> str:
    info = await ExecutorServiceStub(channel).GetModelInfo(GetModelInfoRequest(), timeout=_TIMEOUT_SECONDS)
    return ExecutorRole.Name(info.role).removeprefix("EXECUTOR_ROLE_").lower()


async def _requests(channel: grpc.aio.Channel) -> Sequence[RequestState]:
    response = await ExecutorServiceStub(channel).ListRequests(ListRequestsRequest(), timeout=_TIMEOUT_SECONDS)
    return list(response.requests)


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


def _request_line(state: RequestState) -> str:
    """`  r-17  acme  priority 0  12.4 s  1 running, 1 waiting (no_slot)  200 prompt + 31 tokens  14 blocks`."""
    reason = WaitingReason.Name(state.waiting_reason).removeprefix("WAITING_REASON_").lower()
    waiting = f", {state.waiting_sequences} waiting ({reason})" if state.waiting_sequences else ""
    age = state.age.ToMilliseconds() / 1e3
    return (
        f"  {state.request_id}  {state.tenant or '-'}  priority {state.priority}  {age:.1f} s  "
        f"{state.running_sequences} running{waiting}  "
        f"{state.prompt_tokens} prompt + {state.completion_tokens} tokens  {state.blocks} blocks"
    )


def _summary(load: Message | None) -> str:
    match load:
        case GetLoadResponse():
            used = load.total_blocks - load.free_blocks
            return (
                f"{load.running_sequences} running, {load.waiting_requests} waiting, "
                f"{used}/{load.total_blocks} blocks in use, step {load.step}{_handoffs(load)}{_batch(load)}"
            )
        case GetStatsResponse():
            return ", ".join(
                f"{t.tier}: {t.blocks} blocks, {t.bytes >> 20} of {t.capacity_bytes >> 20} MiB, {t.hits} hits"
                for t in load.tiers
            )
    return ""


def _handoffs(load: GetLoadResponse) -> str:
    return f", {load.live_handoffs} handed off" if load.live_handoffs else ""


def _batch(load: GetLoadResponse) -> str:
    """The newest batch: `, last batch 8 sequences, 512 + 7 tokens in 31 ms`, of prompts and of decodes."""
    if not load.HasField("last_batch"):
        return ""
    last = load.last_batch
    return (
        f", last batch {last.sequences} sequences, {last.prefill_tokens} + {last.decode_tokens} tokens "
        f"in {last.duration.ToMilliseconds()} ms"
    )
