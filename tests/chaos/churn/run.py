"""Two minutes of churn, or as long as is wanted, and what is left after it."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from chaos.churn.fleet import Fleet, running_fleet
from chaos.churn.load import Load, Outcomes, run_load
from servers import nats_server
from weir.executor.v1.executor_pb2 import GetLoadRequest
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.router.v1.router_pb2 import ListModelsRequest
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel

_START_SECONDS = 60.0
# As for an operator who would rather lose a second than a request.
_ROUTER = {"LOAD_INTERVAL_SECONDS": "0.5", "PROBE_TIMEOUT_SECONDS": "2", "LOG_LEVEL": "info"}


@dataclass(frozen=True)
class Churned:
    outcomes: Outcomes
    fleet: Fleet
    # Of the router, by kind, and requests that executors still hold, when all was over.
    leases: Mapping[str, float]
    held: int
    metrics: Mapping[str, float]


async def churn(
    directory: Path, seconds: float, load: Load, seed: int, router: Mapping[str, str] | None = None
) -> Churned:
    """`router`: further settings of the router."""
    told = {**_ROUTER, **(router or {})}
    with nats_server(directory / "nats") as nats, running_fleet(directory, nats.url, seed, told) as fleet:
        await _until_ready(fleet)
        async with asyncio.TaskGroup() as tasks:
            loading = tasks.create_task(run_load(fleet.router, load, seconds))
            churning = tasks.create_task(_churn(fleet))
            outcomes = await loading
            churning.cancel()
        fleet.restore(time.monotonic())
        await _until_ready(fleet)
        metrics = await _metrics(fleet)
        leases = {name: value for name, value in metrics.items() if name.startswith("weir_router_leases{")}
        return Churned(outcomes, fleet, leases, await _held(fleet), metrics)


async def _churn(fleet: Fleet) -> None:
    while True:
        fleet.churn(time.monotonic())
        await asyncio.sleep(1.0)


async def _until_ready(fleet: Fleet) -> None:
    """All executors are known to serve, so that nobody is still coming."""
    async with asyncio.timeout(_START_SECONDS), open_channel(fleet.router) as channel:
        stub = RouterServiceStub(channel)
        wanted = sum(worker.kind == "executor" for worker in fleet.workers)
        while True:
            try:
                models = await stub.ListModels(ListModelsRequest(), timeout=5, wait_for_ready=True)
                if sum(model.healthy_workers for model in models.models) == wanted:
                    return
            except grpc.RpcError:
                pass
            await asyncio.sleep(0.1)


async def _held(fleet: Fleet) -> int:
    """Requests on executors; one that was withdrawn is gone a step later."""
    held = -1
    for _ in range(50):
        held = 0
        for worker in fleet.workers:
            if worker.kind == "executor":
                async with open_channel(worker.address) as channel:
                    held += (await ExecutorServiceStub(channel).GetLoad(GetLoadRequest(), timeout=5)).live_requests
        if not held:
            break
        await asyncio.sleep(0.1)
    return held


async def _metrics(fleet: Fleet) -> dict[str, float]:
    def read() -> str:
        with urllib.request.urlopen(f"http://{fleet.metrics}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(read)
    return {name: float(value) for name, value in re.findall(r"^(weir_router_\S+) (\S+)$", text, re.MULTILINE)}
