"""KV events over a real NATS: whoever follows them knows what each service says itself, whatever is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
from pydantic_settings import SettingsConfigDict

from contract.kv_bus_contract import Known, running
from contract.kv_watch import Mirror, Place
from e2e.storing import ask, calling, only, stack
from servers import NatsServer, nats_server
from weir.executor.v1 import executor_pb2
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.kvstore.v1 import kvstore_pb2
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.clock import SystemClock
from weir_chassis.kv_events.follower import KvEventFollower
from weir_chassis.kv_events.wire import Source
from weir_chassis.metrics import Metrics
from weir_chassis.nats import NatsConnection
from weir_chassis.settings import ServiceSettings
from weir_client.stack import RunningService
from weir_local.processes import Stack

_CAUGHT_UP_SECONDS = 40.0


class _Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_TEST_")


@asynccontextmanager
async def following(url: str) -> AsyncIterator[Known]:
    known, clock, random, metrics = Known(), SystemClock(), Random(0), Metrics("test")
    settings = _Settings.model_validate({"nats_url": url})
    connection = NatsConnection(settings, "test", metrics, clock, random)
    follower = KvEventFollower(connection, ["executor", "kvstore"], known, metrics=metrics, clock=clock, random=random)
    async with running(connection.run(), follower.run()):
        yield known


async def watched(service: RunningService) -> dict[Place, bytes]:
    """What the service's own `WatchKvEvents` says that it holds."""
    async with open_channel(service.address) as channel:
        call: Any
        if service.service == "executor":
            call = ExecutorServiceStub(channel).WatchKvEvents(executor_pb2.WatchKvEventsRequest())
        else:
            call = KvStoreServiceStub(channel).WatchKvEvents(kvstore_pb2.WatchKvEventsRequest())
        mirror = Mirror(call)
        await mirror.read()
        mirror.call.cancel()
        return mirror.held


def known_of(known: Known, service: RunningService) -> dict[Place, bytes] | None:
    held = known.held.get(Source(service.service, service.address))
    if held is None:
        return None
    return {Place(*key, block): parent for key, found in held._held.items() for block, parent in found.items()}


async def until_all_agree(known: Known, stack: Stack, *, at_least: int) -> None:
    """Every service's blocks are known, each holds that many or more, and the store has counted the executors'."""
    async with asyncio.timeout(_CAUGHT_UP_SECONDS):
        for service in (*only(stack, "executor"), *only(stack, "kvstore")):
            while True:
                try:
                    held = await watched(service)
                except (grpc.aio.AioRpcError, AssertionError):  # it is being started again
                    held = {}
                if len(held) >= at_least and known_of(known, service) == held:
                    break
                await asyncio.sleep(0.1)
        while await counted(stack) != {
            service.address: len(await watched(service)) for service in only(stack, "executor")
        }:
            await asyncio.sleep(0.1)


async def counted(stack: Stack) -> dict[str, int]:
    """What the store says that executors hold."""
    (store,) = only(stack, "kvstore")
    async with open_channel(store.address) as channel:
        stats = await KvStoreServiceStub(channel).GetStats(kvstore_pb2.GetStatsRequest(), timeout=5)
    return {source.source: source.blocks for source in stats.sources}


async def fill(stack: Stack, salts: range) -> None:
    for service in only(stack, "executor"):
        async with calling(service.address) as caller:
            for salt in salts:
                await ask(caller, salt, salt)


async def restarted(stack: Stack, killed: RunningService) -> None:
    async with asyncio.timeout(_CAUGHT_UP_SECONDS):
        while killed in stack.services:
            await asyncio.sleep(0.05)


async def test_followers_know_what_services_hold_whatever_is_killed(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as nats:
        async with stack(tmp_path, nats.url) as services, following(nats.url) as known:
            await fill(services, range(5))
            await until_all_agree(known, services, at_least=5 * 8)

            for service in ("executor", "kvstore"):
                await one_dies(services, known, service)
            await nats_dies(nats, services, known)


async def one_dies(services: Stack, known: Known, service: str) -> None:
    """Its successor holds nothing at first, and everybody knows."""
    victim, resets = only(services, service)[0], known.resets
    os.kill(victim.pid, signal.SIGKILL)
    await restarted(services, victim)
    await until_all_agree(known, services, at_least=0)
    assert known.resets == resets + 1, "of the one that was killed, and of no other"
    salts = range(resets * 10, resets * 10 + 3)  # that nobody has seen
    await fill(services, salts)
    await until_all_agree(known, services, at_least=3 * 8)


async def nats_dies(nats: NatsServer, services: Stack, known: Known) -> None:
    """The services go on without it; what happened meanwhile is asked for when it is back."""
    nats.kill()
    await fill(services, range(100, 104))
    nats.start()
    await until_all_agree(known, services, at_least=7 * 8)
    await fill(services, range(104, 106))
    await until_all_agree(known, services, at_least=9 * 8)
