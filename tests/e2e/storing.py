"""A kvstore and two executors as `weir up` runs them, without the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from contract.executor_contract import Caller, connect, prompt_of
from servers import free_port
from weir.executor.v1 import executor_pb2 as pb
from weir_chassis.channel import open_channel
from weir_client.stack import RunningService
from weir_local.placement import Placement, PlannedService, plan
from weir_local.processes import Events, Stack, started


@asynccontextmanager
async def stack(logs: Path, nats_url: str | None = None) -> AsyncIterator[Stack]:
    """The executors have the fake engine. Whoever is killed is started again."""
    plans = plan(Placement(executors=2, nats_url=nats_url), free_port)
    # Steps that are slow enough for a load to pay.
    fake = {"engine": "fake", "num_blocks": "512", "fake_step_seconds": "0.02"}
    chosen = [
        PlannedService(p.service, p.address, {**p.settings, **(fake if p.service == "executor" else {})})
        for p in plans
        if p.service in ("kvstore", "executor")
    ]
    events = Events(ready=lambda *_: None, lost=lambda *_: None, changed=lambda _: None)
    async with started(chosen, logs, events) as running:
        yield running


def only(running: Stack, service: str) -> list[RunningService]:
    return [each for each in running.services if each.service == service]


@asynccontextmanager
async def calling(address: str) -> AsyncIterator[Caller]:
    async with open_channel(address) as channel:
        stub = connect(channel)
        caller = Caller(stub, await stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10))
        yield caller
        caller.call.cancel()


async def ask(caller: Caller, handle: int, salt: int) -> pb.RequestEnd:
    """A prompt of its own, long enough to be stored and loaded."""
    await caller.submit(handle, prompt_of(16 * 8 + 1, salt), share=True)
    await caller.until_told(handle)
    assert not caller.failed, caller.failed
    return caller.ended[handle]
