"""Requests that share a prefix go where its blocks are, and so they do after the router was killed: real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import grpc
import pytest

from e2e.storing import only
from servers import free_port, nats_server
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.inference.v1.stream_pb2 import Receipt, WorkerScore
from weir.router.v1.fleet_pb2 import ExplainRouteRequest
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir.router.v1.router_pb2 import GenerateRequest
from weir_chassis.channel import open_channel
from weir_client.answer import collect
from weir_client.client import Client
from weir_local.placement import Placement, PlannedService, plan
from weir_local.processes import Events, Stack, started

# Every request goes where the policy says, none by chance.
_ROUTING = """
[defaults]
policy = "prefix_aware"
[defaults.prefix_aware]
explore = 0.0
jitter = 0.0
"""
_PATIENCE_SECONDS = 60.0
_SUBJECTS = ("rivers", "weirs", "locks", "mills", "fish", "floods")


@asynccontextmanager
async def stack(directory: Path, engine: str, nats_url: str | None) -> AsyncIterator[Stack]:
    """Two executors, and no kvstore that would share their blocks."""
    routing = directory / "routing.toml"
    routing.write_text(_ROUTING)
    own = {"engine": engine, "num_blocks": "2048", "kvstore_address": ""}
    plans = [
        PlannedService(p.service, p.address, {**p.settings, **(own if p.service == "executor" else {})})
        for p in plan(Placement(executors=2, nats_url=nats_url, routing_file=routing), free_port)
        if p.service != "kvstore"
    ]
    events = Events(ready=lambda *_: None, lost=lambda *_: None, changed=lambda _: None)
    async with started(plans, directory, events) as running:
        yield running


def prompt(subject: str) -> str:
    return f"All that is to be said about {subject} begins with water. " * 20


async def ask(client: Client, text: str) -> Receipt:
    stopping = StoppingConditions(max_tokens=2)
    return (await collect(client.generate(text, stopping=stopping, timeout=_PATIENCE_SECONDS))).receipt


async def held(router: str, text: str) -> dict[str, float]:
    """What the router believes that each executor holds of the prompt, in tokens."""
    async with open_channel(router) as channel:
        request = ExplainRouteRequest(generate=GenerateRequest(text=text))
        explained = await FleetServiceStub(channel).ExplainRoute(request, timeout=10)
    return {score.worker: _cached(score) for score in explained.scores}


def _cached(score: WorkerScore) -> float:
    return score.terms.get("cached_tokens", -1.0)  # without an index there is no such term


async def until_known(router: str, homes: dict[str, str]) -> None:
    """The router knows of each subject's prompt, and that it is held in its home and nowhere else."""
    for subject, home in homes.items():
        await until_believed(router, prompt(subject), partial(_is_held_in, home))


def _is_held_in(home: str, known: dict[str, float]) -> bool:
    return known[home] > 100 and sum(known.values()) == known[home]


async def until_believed(router: str, text: str, wanted: Callable[[dict[str, float]], bool]) -> None:
    """Both executors are there, and what the router believes of them is this."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            with suppress(grpc.RpcError):  # it is being started again, or has not found its workers yet
                known = await held(router, text)
                if len(known) == 2 and wanted(known):
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(("engine", "bus"), [("fake", "NATS"), ("paged", "no bus")])
async def test_requests_go_where_their_blocks_are_also_after_the_router_was_killed(
    tmp_path: Path, engine: str, bus: str
) -> None:
    with nats_server(tmp_path / "nats") as nats:
        async with stack(tmp_path, engine, nats.url if bus == "NATS" else None) as services:
            (router,) = only(services, "router")
            await until_believed(router.address, prompt("nothing"), lambda known: sum(known.values()) == 0)
            async with Client(router.address) as client:
                homes = {subject: (await ask(client, prompt(subject))).worker for subject in _SUBJECTS}
                assert len(Counter(homes.values())) == 2, "both executors have got some"
                await until_known(router.address, homes)
                await goes_home(client, homes, "first question")
            os.kill(router.pid, signal.SIGKILL)
            await until_known(router.address, homes)
            async with Client(router.address) as client:
                await goes_home(client, homes, "second question")


async def goes_home(client: Client, homes: dict[str, str], question: str) -> None:
    for subject, home in homes.items():
        receipt = await ask(client, prompt(subject) + question)
        assert receipt.worker == home
        assert receipt.policy == "prefix_aware"
        assert receipt.engine_cached_tokens > 100, "what it was sent there for was there"
