"""The CPU that each service adds to the bare engine, per token and per request.

The engine is the fake one, whose own cost is small and is measured by itself: a model's arithmetic would drown what is
looked for. Two loads that differ in tokens per request give two equations for two unknowns:

    cpu = requests * per_request + tokens * per_token
"""

from __future__ import annotations

import asyncio
import os
import queue
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from bench.report import Figures, print_table
from servers import free_port
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_client.answer import collect
from weir_client.client import Client, user
from weir_client.stack import RunningService
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.step_output import StepOutput
from weir_local.placement import Placement, PlannedService, plan
from weir_local.processes import Events, started
from weir_local.stack import until_healthy

STREAMS = 64  # requests under way at once
STEP_SECONDS = 0.01  # of the fake engine: 100 steps a second, each answering all of the running requests in one message


@dataclass(frozen=True, slots=True)
class Load:
    requests: int
    tokens: int  # of each request

    @property
    def all_tokens(self) -> int:
        return self.requests * self.tokens


SHORT, LONG = Load(requests=512, tokens=1), Load(requests=128, tokens=200)
Cost = tuple[float, float]  # seconds of CPU: per request, per token


def measure(scratch: Path) -> Figures:
    """Prints the table. Measures each process by its own user and system time."""
    used = asyncio.run(_suite(scratch))
    bare = _cost(_bare_engine(SHORT), _bare_engine(LONG))
    costs = {name: _cost(used[SHORT][name], used[LONG][name]) for name in used[SHORT]}
    costs["executor"] = (costs["executor"][0] - bare[0], costs["executor"][1] - bare[1])
    return _report(costs, bare)


async def _suite(scratch: Path) -> dict[Load, Counter[str]]:
    plans = [_with_fake_engine(planned) for planned in plan(Placement(port=0), free_port)]
    (scratch / "logs").mkdir()
    silent = Events(ready=lambda *_: None, lost=lambda *_: None, changed=lambda *_: None)
    async with started(plans, scratch / "logs", silent) as stack, Client(plans[-1].address) as client:
        await until_healthy(plans[-1].address, 1)
        await _answer(client, Load(64, 4))  # connections, caches, code paths
        return {load: await _used(client, load, stack.services) for load in (SHORT, LONG)}


def _with_fake_engine(planned: PlannedService) -> PlannedService:
    if planned.service != "executor":
        return planned
    settings = {"engine": "fake", "fake_step_seconds": str(STEP_SECONDS), "max_num_seqs": str(STREAMS)}
    return replace(planned, settings={**planned.settings, **settings})


async def _used(client: Client, load: Load, services: list[RunningService]) -> Counter[str]:
    before = {service.service: _cpu_seconds(service.pid) for service in services}
    await _answer(client, load)
    return Counter({service.service: _cpu_seconds(service.pid) - before[service.service] for service in services})


async def _answer(client: Client, load: Load) -> None:
    gate = asyncio.Semaphore(STREAMS)
    stopping = StoppingConditions(max_tokens=load.tokens, ignore_eos=True)

    async def one(index: int) -> None:
        async with gate:
            sampling = SamplingParameters(seed=index)
            answer = await collect(client.chat([user(f"Question {index}?")], sampling=sampling, stopping=stopping))
            assert len(answer.outputs[0].token_ids) == load.tokens

    await asyncio.gather(*(one(index) for index in range(load.requests)))


def _bare_engine(load: Load) -> float:
    """Seconds of CPU of the fake engine alone, fed and read in this process."""
    steps = queue.SimpleQueue[StepOutput]()
    engine = FakeEngine(FakeEngineConfig(max_num_seqs=STREAMS, max_waiting=load.requests, step_seconds=STEP_SECONDS))
    engine.start(steps.put)
    began = time.process_time()
    for key in range(load.requests):
        sampling = Sampling(seed=key)
        engine.submit(GenerationRequest(key, list(range(3, 23)), load.tokens, sampling=sampling, ignore_eos=True))
    ended = 0
    while ended < load.requests:
        ended += len(steps.get(timeout=60).ended)
    used = time.process_time() - began
    engine.close()
    return used


def _cost(short: float, long: float) -> Cost:
    """Solve the two loads' equations."""
    determinant = SHORT.requests * LONG.all_tokens - LONG.requests * SHORT.all_tokens
    per_request = (short * LONG.all_tokens - long * SHORT.all_tokens) / determinant
    per_token = (SHORT.requests * long - LONG.requests * short) / determinant
    return per_request, per_token


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads, in steps of the kernel's tick (10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _report(costs: dict[str, Cost], bare: Cost) -> Figures:
    figures, rows = Figures(), []
    total = (sum(cost[0] for cost in costs.values()), sum(cost[1] for cost in costs.values()))
    for name, cost in [*sorted(costs.items()), ("all five", total), ("(bare fake engine)", bare)]:
        rows.append([name, f"{1e6 * cost[0]:.0f} µs", f"{1e6 * cost[1]:.1f} µs"])
        figures.measured[f"{name}_us_per_request".replace(" ", "_")] = 1e6 * cost[0]
        figures.measured[f"{name}_us_per_token".replace(" ", "_")] = 1e6 * cost[1]
    title = f"CPU that each service adds, {STREAMS} streams, {LONG.tokens} tokens each"
    print_table(title, ["service", "per request", "per token"], rows)
    return figures
