"""32 requests that share 1,024 tokens, by where the prefix is when they come.

The row `prefix` of `make bench-engine`; `make bench-prefix` is that row alone.
A kvstore with memory and a disk, and two executors, as `weir up` runs them, each a process of its own; all requests at
once on one stream. What is compared is the time to the first token, the median of 32, and the time to the last token of
all. Wherever the prefix came from, the tokens must be those without a cache: a row that is not right is no row.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.contenders.serving import KV_CACHE_GIB, THREADS
from bench.executor_client import Heard, answer
from bench.report import Figures, print_table
from bench.workload import Work, shared_blocks, shared_prefix_once, warm_up
from servers import free_port
from weir.kvstore.v1 import kvstore_pb2 as kv
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.channel import open_channel
from weir_local.placement import Placement, plan
from weir_local.processes import Events, Stack, started

# One prefix each, so that no row finds what another left in an executor's pool.
_SAME, _AGAIN, _DISK = 1, 2, 3
_PREFIX_BLOCKS = 1024 // 16
_CHECKED = 4
_STORE_MIB = 1024
_STORED_SECONDS, _BACK_SECONDS = 60.0, 60.0
_STILL_SECONDS = 2.0  # nothing more is on its way to the store
_TITLES = {
    "no_cache": "no cache",
    "cold": "cold: the first of them computes it",
    "device": "in the executor's pool",
    "second_executor": "in the kvstore's memory, a second executor",
    "ram": "in the kvstore's memory, loaded before",
    "restarted": "in the kvstore's memory, the executor restarted",
    "disk": "on the kvstore's disk, the kvstore restarted",
}
_SAME_PROMPTS = ("cold", "device", "second_executor", "restarted")
_FROM_STORE = ("second_executor", "ram", "restarted", "disk")
# Times as fast to the first token as without a cache.
GOALS = {
    "cold_first_token": 5.0,
    "device_first_token": 15.0,
    "second_executor_first_token": 10.0,
    "ram_first_token": 10.0,
    "restarted_first_token": 10.0,
    "disk_first_token": 7.5,
}


def measure(model_dir: Path, scratch: Path) -> Figures:
    """Prints the table."""
    return report(asyncio.run(_rows(model_dir, scratch)))


async def _rows(model_dir: Path, scratch: Path) -> dict[str, Heard]:
    async with _stack(model_dir, scratch) as stack:
        first, second = (service.address for service in stack.services if service.service == "executor")
        await asyncio.gather(answer(first, _private(-1)), answer(second, _private(-2)))
        rows = {
            "no_cache": await answer(first, replace(shared_blocks(_SAME), cached=False)),
            "cold": await answer(first, shared_blocks(_SAME)),
            "device": await answer(first, shared_blocks(_SAME)),
        }
        for salt in (_AGAIN, _DISK):
            await answer(first, shared_prefix_once(salt))
        await _until_stored(stack)
        rows["second_executor"] = await answer(second, shared_blocks(_SAME))
        rows["ram"] = await answer(second, shared_blocks(_AGAIN))
        await _restart(stack, "executor")
        await answer(first, _private(-3))
        rows["restarted"] = await answer(first, shared_blocks(_SAME))
        await _restart(stack, "kvstore")
        rows["disk"] = await answer(second, shared_blocks(_DISK))
        await _check_some(first, _AGAIN, rows["ram"])
        await _check_some(first, _DISK, rows["disk"])
    return rows


async def _check_some(address: str, salt: int, heard: Heard) -> None:
    """Against the tokens without a cache, of as many requests as takes a moment."""
    work = shared_blocks(salt)
    some = Work(work.prompts[:_CHECKED], work.lengths[:_CHECKED], cached=False)
    for handle, tokens in (await answer(address, some)).tokens.items():
        assert heard.tokens[handle] == tokens, f"prompt {handle} of {salt}: other tokens than without a cache"


def _private(salt: int) -> Work:
    """Loads every kernel and allocator, and leaves no block."""
    return replace(warm_up(salt), cached=False)


@asynccontextmanager
async def _stack(model_dir: Path, scratch: Path) -> AsyncIterator[Stack]:
    silent = Events(ready=lambda *_: None, lost=lambda *_: None, changed=lambda *_: None)
    placement = Placement(model_dir, executors=2, port=0, kv_cache_mib=KV_CACHE_GIB << 10, kv_store_mib=_STORE_MIB)
    told = {
        "executor": {"num_threads": str(THREADS)},
        "kvstore": {"disk_path": str(scratch / "disk"), "disk_bytes": str(_STORE_MIB << 20)},
    }
    plans = [
        replace(planned, settings={**planned.settings, **told[planned.service]})
        for planned in plan(placement, free_port)
        if planned.service in told
    ]
    (scratch / "logs").mkdir(parents=True)
    async with started(plans, scratch / "logs", silent) as stack:
        yield stack


async def _until_stored(stack: Stack) -> None:
    """Full blocks follow when no request runs, and go to disk from memory: until nothing moves any more."""
    (address,) = (service.address for service in stack.services if service.service == "kvstore")
    deadline, still_since, held = time.monotonic() + _STORED_SECONDS, time.monotonic(), dict[str, int]()
    async with open_channel(address) as channel:
        stub = KvStoreServiceStub(channel)
        while time.monotonic() - still_since < _STILL_SECONDS or held.get("ram", 0) < 3 * _PREFIX_BLOCKS:
            assert time.monotonic() < deadline, f"not stored in time: {held}"
            await asyncio.sleep(0.1)
            stats = await stub.GetStats(kv.GetStatsRequest(), timeout=10)
            now_held = {tier.tier: tier.blocks for tier in stats.tiers}
            if now_held != held:
                held, still_since = now_held, time.monotonic()


async def _restart(stack: Stack, name: str) -> None:
    """The first service of this name ends as on a deployment, and is started again."""
    service = next(service for service in stack.services if service.service == name)
    os.kill(service.pid, signal.SIGTERM)
    deadline = time.monotonic() + _BACK_SECONDS
    while any(each.pid == service.pid for each in stack.services) or not await _serves(service.address):
        assert time.monotonic() < deadline, f"{name} is not back"
        await asyncio.sleep(0.1)


async def _serves(address: str) -> bool:
    async with open_channel(address) as channel:
        try:
            response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.RpcError:
            return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def report(rows: dict[str, Heard]) -> Figures:
    """A prefix that did not come from where its row says was not measured."""
    figures, lines, reference = Figures(goals=GOALS), [], rows["no_cache"]
    for name, heard in rows.items():
        assert name not in _SAME_PROMPTS or heard.tokens == reference.tokens, (
            f"{name}: other tokens than without a cache"
        )
        figures.measured |= {f"{name}_first_token_s": heard.median_first_token, f"{name}_total_s": heard.seconds}
        if name in _FROM_STORE and not heard.store_cached:
            figures.missing[name] = "nothing came from the kvstore"
        elif name != "no_cache":
            figures.ratios[f"{name}_first_token"] = reference.median_first_token / heard.median_first_token
            figures.ratios[f"{name}_total"] = reference.seconds / heard.seconds
        lines.append(_line(name, heard, figures))
    header = [
        "32 requests that share 1,024 tokens",
        "first token",
        "all",
        "times as fast",
        "all",
        "from pool",
        "kvstore",
    ]
    print_table("By where the prefix is", header, lines)
    return figures


def _line(name: str, heard: Heard, figures: Figures) -> list[str]:
    ratios = (figures.ratios.get(f"{name}_{what}") for what in ("first_token", "total"))
    return [
        _TITLES[name],
        f"{heard.median_first_token:.3f} s",
        f"{heard.seconds:.2f} s",
        *("-" if ratio is None else f"{ratio:.1f}" for ratio in ratios),
        str(heard.engine_cached),
        str(heard.store_cached),
    ]
