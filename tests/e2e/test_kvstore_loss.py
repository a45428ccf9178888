"""The kvstore is killed under load: nobody notices but the clock, and when it is back, prefixes are shared again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from contract.executor_contract import Caller, connect, prompt_of
from weir.executor.v1 import executor_pb2 as pb
from weir_chassis.channel import open_channel
from weir_client.stack import RunningService
from weir_local.placement import Placement, PlannedService, plan
from weir_local.processes import Events, Stack, started
from weir_local.stack import free_port

_KILL_AFTER, _REQUESTS, _AT_ONCE = 20, 40, 8
# The supervisor's pause, an interpreter's start, and a breaker's pause after two or three trials that failed.
_BACK_SECONDS = 12.0


@asynccontextmanager
async def stack(logs: Path) -> AsyncIterator[Stack]:
    """A kvstore and two executors with the fake engine, as `weir up` runs them, without the rest."""
    plans = plan(Placement(executors=2), free_port)
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


async def storm(running: Stack, address: str, handles: Sequence[int]) -> None:
    """`_AT_ONCE` requests at a time on one stream; half of the prompts are those of the other executor's."""
    async with calling(address) as caller:
        for start in range(0, len(handles), _AT_ONCE):
            wave = handles[start : start + _AT_ONCE]
            for handle in wave:
                await caller.submit(handle, prompt_of(16 * 8 + 1, salt=handle), share=True)
            if handles[0] == 0 and start <= _KILL_AFTER < start + _AT_ONCE:
                os.kill(only(running, "kvstore")[0].pid, signal.SIGKILL)
            await caller.until_told(*wave)
        assert not caller.failed, caller.failed
        assert len(caller.ended) == len(handles)
        assert all(len(caller.tokens[handle, 0]) == 8 for handle in handles)


async def shared(running: Stack, salts: Iterator[int]) -> bool:
    """Whether what one executor computes reaches the other, asked with ever new prompts until it does."""
    one, two = only(running, "executor")
    deadline = time.monotonic() + _BACK_SECONDS
    async with calling(one.address) as first, calling(two.address) as second:
        while time.monotonic() < deadline:
            salt = next(salts)
            await ask(first, salt, salt)
            await asyncio.sleep(0.2)  # the blocks are put in the background
            if (await ask(second, salt, salt)).store_cached_tokens:
                return True
    return False


async def test_a_lost_kvstore_costs_no_request_and_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    salts = count(_REQUESTS * 2)  # prompts that neither executor holds
    async with stack(tmp_path) as running:
        assert await shared(running, salts), "before anything happens"
        killed = only(running, "kvstore")[0].pid
        one, two = only(running, "executor")
        half = _REQUESTS // 2
        await asyncio.gather(
            storm(running, one.address, range(_REQUESTS)),
            storm(running, two.address, range(half, half + _REQUESTS)),
        )
        assert await shared(running, salts)
        assert only(running, "kvstore")[0].pid != killed
        assert only(running, "executor") == [one, two], "no executor was lost with it"
