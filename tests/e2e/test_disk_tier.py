"""The disk tier of a real kvstore process: killed at any point of a put, and found again by whoever starts next."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from contract import kvstore_contract as kv
from contract.executor_contract import Caller, connect, prompt_of
from contract.kvstore_contract import Sent
from servers import free_port
from weir.executor.v1 import executor_pb2 as pb
from weir_chassis.channel import open_channel
from weir_chassis.clock import SystemClock
from weir_kvstore.record import Record
from weir_kvstore.tiers.disk import SegmentSlots
from weir_local.placement import Placement, PlannedService, plan
from weir_local.processes import Events, Stack, started

if TYPE_CHECKING:
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub as Stub

_CAPACITY_BYTES = 64 * kv.MIB


@asynccontextmanager
async def kvstore(directory: Path, port: int) -> AsyncIterator[tuple[Stub, asyncio.subprocess.Process]]:
    """A store with a disk tier there; killed, if it has not been, when this is left."""
    settings = {"PORT": port, "DISK_PATH": directory, "DISK_BYTES": _CAPACITY_BYTES, "CAPACITY_BYTES": _CAPACITY_BYTES}
    environment = {f"WEIR_KVSTORE_{name}": str(value) for name, value in settings.items()}
    environment["WEIR_KVSTORE_EXIT_WITH_PARENT"] = str(os.getpid())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "weir_kvstore", env=os.environ | environment, stdout=subprocess.DEVNULL
    )
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            stub = kv.connect(channel)
            async with asyncio.timeout(20):
                while not await _answers(stub):
                    await asyncio.sleep(0.05)
            yield stub, process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _answers(stub: Stub) -> bool:
    try:
        await kv.stats(stub)
    except grpc.aio.AioRpcError:
        return False
    return True


async def _stored_on_disk(stub: Stub) -> int:
    """Blocks."""
    disk = (await kv.stats(stub)).tiers[1]
    assert (disk.tier, disk.fault) == ("disk", "")
    return disk.blocks


async def _put_until_killed(stub: Stub, chains: Sequence[Sequence[Sent]]) -> None:
    """One put after another, in pieces, so that a kill meets every part of them."""
    for blocks in chains:
        messages = [kv.begin(), *(piece for block in blocks for piece in kv.pieces(block, 10_000)), kv.commit()]
        try:
            await stub.PutBlocks(iter(messages))
        except grpc.aio.AioRpcError:
            return


async def _promised(directory: Path) -> list[Record]:
    """What the directory holds, read without the store."""
    slots = SegmentSlots(directory, _CAPACITY_BYTES, SystemClock())
    recovered = await slots.recover()
    await slots.close()
    return [found.record for found in recovered]


async def _read(stub: Stub, block: Sent) -> bytes | None:
    matched = await kv.match(stub, [block])
    if not matched.matched_blocks:
        return None
    read = await kv.get(stub, matched.lease_id)
    await kv.release(stub, matched.lease_id)
    return read.get(block.block_hash)


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_point_of_a_put_everything_that_disk_had_committed_is_read(
    tmp_path: Path, seed: int
) -> None:
    random_, port = random.Random(seed), free_port()
    chains = [kv.chain(6, 30_000, seed=100 * seed + number) for number in range(60)]
    async with kvstore(tmp_path, port) as (stub, process):
        putting = asyncio.create_task(_put_until_killed(stub, chains))
        seen = 0
        while seen < random_.randint(20, 120):
            seen = await _stored_on_disk(stub)
        await asyncio.sleep(random_.random() / 50)
        process.send_signal(signal.SIGKILL)
        await putting
    promised = {record.address.block_hash for record in await _promised(tmp_path)}
    assert len(promised) >= seen, "what it said that it has"
    async with kvstore(tmp_path, port) as (stub, _):
        assert await _stored_on_disk(stub) == len(promised)
        for block in (block for blocks in chains for block in blocks):
            assert await _read(stub, block) == (block.payload if block.block_hash in promised else None)
        report = await kv.stats(stub)
        assert (sum(tier.corrupt for tier in report.tiers), report.live_leases) == (0, 0)


async def test_removed_blocks_stay_away_though_the_store_is_killed_at_once(tmp_path: Path) -> None:
    port, blocks = free_port(), kv.chain(8, 30_000)
    async with kvstore(tmp_path, port) as (stub, process):
        await kv.put(stub, blocks)
        while await _stored_on_disk(stub) < 8:
            await asyncio.sleep(0.02)
        leased = await kv.match(stub, blocks)
        assert leased.matched_blocks == 8
        assert await kv.remove(stub, blocks[5:]) == 3
        process.send_signal(signal.SIGKILL)
    async with kvstore(tmp_path, port) as (stub, _):
        assert await kv.held(stub, blocks) == 5


@asynccontextmanager
async def stack(directory: Path, logs: Path) -> AsyncIterator[Stack]:
    """A kvstore with a disk tier and an executor with the fake engine, each brought back when it is lost."""
    plans = plan(Placement(), free_port)
    more = {
        "kvstore": {"disk_path": str(directory)},
        # Steps that are slow enough for a load to pay.
        "executor": {"engine": "fake", "num_blocks": "512", "fake_step_seconds": "0.02"},
    }
    chosen = [
        PlannedService(p.service, p.address, {**p.settings, **more[p.service]}) for p in plans if p.service in more
    ]
    events = Events(ready=lambda *_: None, lost=lambda *_: None, changed=lambda _: None)
    async with started(chosen, logs, events) as running:
        yield running


async def _ask(address: str, salt: int) -> tuple[list[int], pb.RequestEnd]:
    """The tokens of a prompt of eight blocks, and how it ended."""
    async with open_channel(address) as channel:
        stub = connect(channel)
        caller = Caller(stub, await stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10))
        await caller.submit(salt, prompt_of(16 * 8 + 1, salt), share=True)
        await caller.until_told(salt)
        assert not caller.failed, caller.failed
        caller.call.cancel()
        return list(caller.tokens[salt, 0]), caller.ended[salt]


async def test_after_everything_was_restarted_a_prefix_comes_from_disk(tmp_path: Path) -> None:
    async with stack(tmp_path / "kv", tmp_path) as running:
        store, executor = running.services
        tokens, end = await _ask(executor.address, salt=1)
        assert end.store_cached_tokens == 0
        async with open_channel(store.address) as channel:
            while await _stored_on_disk(kv.connect(channel)) < 8:
                await asyncio.sleep(0.05)
        for service in running.services:
            os.kill(service.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        again: tuple[list[int], pb.RequestEnd] | None = None
        while again is None or not again[1].store_cached_tokens:
            assert time.monotonic() < deadline, again
            try:
                again = await _ask(executor.address, salt=1)
            except (grpc.aio.AioRpcError, TimeoutError):
                await asyncio.sleep(0.2)
                continue
            if not again[1].store_cached_tokens:  # the store came back later than the executor
                os.kill(running.services[1].pid, signal.SIGKILL)
        assert again[0] == tokens
        assert dict(again[1].store_cached_tokens_by_tier) == {"disk": again[1].store_cached_tokens}
