"""500 requests with cancels, deadlines and a killed worker among them: afterwards nothing is held anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from pathlib import Path

import grpc

from e2e.conftest import Stack, load_of, start_stack, until_idle
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.kvstore.v1.kvstore_pb2 import GetStatsRequest
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.errors import WeirError, reason_name
from weir_client.answer import collect
from weir_client.client import Client, user

SEED, REQUESTS, AT_ONCE = 20, 500, 24
KILLS = (150, 300)  # as these requests are sent, an executor with work is killed
_ALLOWED = {"completed", "moved", "cancelled", "DEADLINE_EXCEEDED", "WORKER_LOST", "NO_WORKER", "OVERLOADED"}


async def test_leases_are_zero_after_500_requests_with_cancels_kills_and_deadlines(tmp_path: Path) -> None:
    running = start_stack(tmp_path, "--executors", "3")
    try:
        endings = await _storm(running)
        print(f"seed {SEED}: {dict(endings)}")
        assert endings.total() == REQUESTS
        assert set(endings) <= _ALLOWED, endings
        assert endings["completed"] > REQUESTS / 2
        assert endings["cancelled"] > REQUESTS / 10
        assert endings["DEADLINE_EXCEEDED"] > 0
        assert endings["moved"] > 0
        assert (running.state / "up.log").read_text().count("ended with code -9") == len(KILLS)
        await _nothing_is_held(running)
    finally:
        running.process.send_signal(signal.SIGINT)
        running.process.wait(60)


async def _storm(running: Stack) -> Counter[str]:
    rng, gate = random.Random(SEED), asyncio.Semaphore(AT_ONCE)

    async def one(client: Client, index: int, fate: float, tokens: int) -> str:
        async with gate:
            if index in KILLS:
                await _kill_a_busy_executor(running)
            return await _request(client, index, fate, tokens)

    async with Client(running.router) as client:
        plan = [(index, rng.random(), rng.randint(1, 24)) for index in range(REQUESTS)]
        return Counter(await asyncio.gather(*(one(client, *each) for each in plan)))


async def _kill_a_busy_executor(running: Stack) -> None:
    while True:
        for address in running.addresses("executor"):
            with contextlib.suppress(grpc.RpcError):  # it may be the one that was killed before
                if (await load_of(address)).running_sequences:
                    os.kill(running.pid(address), signal.SIGKILL)
                    return
        await asyncio.sleep(0.02)


async def _request(client: Client, index: int, fate: float, tokens: int) -> str:
    """20 % leave after their first delta, 10 % have a deadline too short, the rest read to the end.

    One whose worker was killed is "moved" if it was answered by another, and WORKER_LOST if there was no other.
    """
    sampling = SamplingParameters(seed=index, n=1 + index % 3 // 2)
    stopping = StoppingConditions(max_tokens=400 if fate < 0.3 else tokens, ignore_eos=fate < 0.3)
    events = client.chat(
        [user(f"Tell me story number {index % 40}.")],
        sampling=sampling,
        stopping=stopping,
        timeout=0.2 if 0.2 <= fate < 0.3 else 90,
    )
    try:
        if fate < 0.2:
            async for event in events:
                if event.HasField("delta"):
                    break
            await events.aclose()  # type: ignore[attr-defined]  # an async generator; Iterator is all we promise
            return "cancelled"
        answer = await collect(events)
    except WeirError as error:
        return reason_name(error.reason)
    return "moved" if len(answer.receipt.workers) > 1 else "completed"


async def _nothing_is_held(running: Stack) -> None:
    await until_idle(running.addresses("executor"), seconds=60)
    async with open_channel(running.addresses("kvstore")[0]) as channel:
        for _ in range(100):
            stats = await KvStoreServiceStub(channel).GetStats(GetStatsRequest(), timeout=5)
            if stats.live_leases == stats.open_puts == 0:
                break
            await asyncio.sleep(0.1)
        assert (stats.live_leases, stats.open_puts) == (0, 0)
    async with Client(running.router) as client:  # and it still answers
        assert (await collect(client.chat([user("Hello")], timeout=30))).outputs
