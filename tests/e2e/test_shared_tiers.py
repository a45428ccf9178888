"""Two machines, each a kvstore and an executor with the demo model: what one computes, the other loads.

They share a Redis, or one store is the other's peer, or one hands a prompt over to the other. The tokens are the same
as if nothing had been shared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from contract import kvstore_contract as kv
from contract.executor_contract import GREEDY, Caller, calling, connect, handed_off, prompt_of, until_all_free
from servers import free_port, redis_server
from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir.kvstore.v1.kvstore_pb2 import TierStats
from weir_chassis.channel import open_channel
from weir_local.placement import Placement, PlannedService, plan
from weir_local.processes import Events, started

_BLOCKS = 40
# A lane's pace, a load that races the computation and may lose, and a breaker's pause after a server was away.
_SHARED_WITHIN_SECONDS = 30.0


@asynccontextmanager
async def machine(
    logs: Path, settings: Mapping[str, str], *, host: str = "127.0.0.1", role: str = "both"
) -> AsyncIterator[tuple[str, str]]:
    """The addresses of its kvstore, with these settings, and of its executor."""
    logs.mkdir()
    planned = {p.service: p for p in plan(Placement(kv_store_mib=64, kv_cache_mib=64), free_port)}
    store, executor = (_moved(planned[name], host) for name in ("kvstore", "executor"))
    executor = replace(executor, settings={**executor.settings, "kvstore_address": store.address, "role": role})
    told = {**store.settings, **settings}
    if "tiers_file" in settings:  # which says itself what RAM holds
        del told["capacity_bytes"]
    events = Events(ready=lambda *_: None, lost=lambda *_: None, changed=lambda _: None)
    async with started([PlannedService("kvstore", store.address, told), executor], logs, events):
        yield store.address, executor.address


def _moved(planned: PlannedService, host: str) -> PlannedService:
    address = f"{host}:{planned.settings['port']}"
    return replace(planned, address=address, settings={**planned.settings, "host": host})


async def ask(executor: str, salt: int) -> tuple[list[int], pb.RequestEnd]:
    """The tokens that follow a prompt of some blocks, and how it ended."""
    async with open_channel(executor) as channel:
        stub = connect(channel)
        caller = Caller(stub, await stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10))
        await caller.submit(salt, prompt_of(16 * _BLOCKS + 1, salt), share=True, sampling=GREEDY)
        await caller.until_told(salt)
        assert not caller.failed, caller.failed
        caller.call.cancel()
        return list(caller.tokens[salt, 0]), caller.ended[salt]


async def tier_of(store: str, name: str) -> TierStats:
    async with open_channel(store) as channel:
        stats = await kv.stats(kv.connect(channel))
    return next(tier for tier in stats.tiers if tier.tier == name)


async def share(one: tuple[str, str], two: tuple[str, str], tier: str, salt: int) -> int:
    """One computes ever new prompts until the other loads one of them, draws the same after it, and says where from."""
    deadline = time.monotonic() + _SHARED_WITHIN_SECONDS
    while time.monotonic() < deadline:
        salt += 1
        tokens, _ = await ask(one[1], salt)
        await asyncio.sleep(1.0)  # put into RAM, and copied from there, in the background
        read = (await tier_of(two[0], tier)).read_bytes
        again, end = await ask(two[1], salt)
        assert again == tokens
        if end.store_cached_tokens:
            assert (await tier_of(two[0], tier)).read_bytes > read
            return salt
    raise AssertionError(await tier_of(two[0], tier))


async def test_two_machines_share_a_redis_also_after_it_was_killed(tmp_path: Path) -> None:
    with redis_server() as server:
        tiers = tmp_path / "tiers.toml"
        tiers.write_text(
            f'[[tier]]\nkind = "ram"\nmax_bytes = "64MiB"\n'
            f'[[tier]]\nkind = "redis"\nurl = "{server.url}"\nadmission = "all"\n'
        )
        settings = {"tiers_file": str(tiers)}
        async with machine(tmp_path / "one", settings) as one, machine(tmp_path / "two", settings) as two:
            salt = await share(one, two, "redis", salt=0)
            server.kill()
            (tokens, _), (again, end) = await ask(one[1], salt + 1), await ask(two[1], salt + 1)
            assert (again, end.store_cached_tokens) == (tokens, 0)
            server.start()
            await share(two, one, "redis", salt=salt + 1)
            assert (await tier_of(one[0], "redis")).fault == ""


async def test_a_store_has_what_its_peer_has(tmp_path: Path) -> None:
    async with machine(tmp_path / "one", {}) as one:
        async with machine(tmp_path / "two", {"peer_address": one[0]}) as two:
            await share(one, two, "peer", salt=0)
            async with asyncio.timeout(_SHARED_WITHIN_SECONDS):
                while not (await tier_of(two[0], "peer")).blocks:  # it is asked every few seconds
                    await asyncio.sleep(0.2)
        tokens, _ = await ask(one[1], 1000)
        assert tokens, "it does without"


async def test_a_prompt_is_handed_over_by_an_address_alone(tmp_path: Path) -> None:
    """No memory, no store and no bus in common: its blocks come by TCP, and both sides are free afterwards."""
    prompt, sampling = prompt_of(16 * _BLOCKS + 5, 7), SamplingParameters(temperature=1, seed=7, n=2)
    alone = {"arena_dir": ""}
    async with (
        machine(tmp_path / "one", alone, host="127.0.0.2", role="prefill") as (_, one),
        machine(tmp_path / "two", alone, host="127.0.0.3", role="decode") as (_, two),
        open_channel(one) as there,
        open_channel(two) as here,
    ):
        prefill, decode = connect(there), connect(here)
        async with calling(prefill) as first, calling(decode) as second:
            await second.submit(1, prompt, sampling=sampling, max_tokens=16)
            await second.until_told(1)
            handoff = await handed_off(first, 2, prompt, sampling=sampling, max_tokens=16)
            handoff.address = one
            begun = {index: first.tokens[2, index] for index in range(2)}
            resumed = [pb.ResumedOutput(output_index=index, token_ids=tokens) for index, tokens in begun.items()]
            await second.submit(
                3, prompt, share=True, sampling=sampling, max_tokens=16, resumed_outputs=resumed, take_over=handoff
            )
            await second.until_told(3)
            assert not second.failed, second.failed
            for index, tokens in begun.items():
                assert [*tokens, *second.tokens[3, index]] == second.tokens[1, index]
            assert second.ended[3].store_cached_tokens == 16 * _BLOCKS
            await until_all_free(prefill)
        await until_all_free(decode)
