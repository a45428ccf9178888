"""Bad luck on real processes: a worker killed, a client that vanishes, a slow reader, a drain."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.router_contract import Answer as RouterAnswer
from contract.router_contract import collect as collect_answer
from e2e.conftest import Stack, load_of, start_stack, until_idle
from weir.inference.v1.routing_pb2 import CONTINUATION_MODE_NONE
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.kvstore.v1.kvstore_pb2 import GetStatsRequest
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir.router.v1.router_pb2 import GenerateRequest
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.errors import WeirError, reason_name
from weir_chassis.fault_table import Fault
from weir_chassis.status import from_rpc_error
from weir_client.answer import collect
from weir_client.client import Client, user

_GREEDY = SamplingParameters(temperature=0)
_LONG = StoppingConditions(max_tokens=1500, ignore_eos=True)
# Of a prompt that two executors are asked, at the least.
_SHARED_BLOCKS = 8


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Stack]:
    """Two executors that a test may kill."""
    running = start_stack(tmp_path, "--executors", "2")
    yield running
    running.process.send_signal(signal.SIGINT)
    running.process.wait(60)


async def test_an_executor_killed_in_mid_stream_costs_only_streams_that_are_not_to_be_continued(mortal: Stack) -> None:
    stopping = StoppingConditions(max_tokens=400, ignore_eos=True)
    request = GenerateRequest(text="Once upon a time", sampling=_GREEDY, stopping=stopping)
    async with open_channel(mortal.router) as channel:
        stub = RouterServiceStub(channel)
        wanted = await collect_answer(stub.Generate(request))
        answer, killed = await _killed_under(mortal, stub, request)
        assert (answer.token_ids, answer.texts, answer.finished) == (wanted.token_ids, wanted.texts, wanted.finished)
        assert answer.usage.completion_tokens == 400
        assert (answer.continued.reason, answer.continued.exact) == ("WORKER_LOST", True)
        assert (answer.receipt.workers[0], len(set(answer.receipt.workers))) == (killed, 2)
        await _until_both_serve(mortal)
        request.routing.continuation = CONTINUATION_MODE_NONE
        with pytest.raises(grpc.RpcError) as caught:
            await _killed_under(mortal, stub, request)
        error = from_rpc_error(caught.value)
        assert reason_name(error.reason) == "WORKER_LOST"
        assert (error.row.code, error.row.fault) == (grpc.StatusCode.UNAVAILABLE, Fault.SERVER)
        assert error.metadata["worker"] in mortal.addresses("executor")
        assert (await collect_answer(stub.Generate(request))).texts == wanted.texts


async def _until_both_serve(running: Stack) -> None:
    """Each of them, and as far as the router knows."""
    await until_idle(running.addresses("executor"), 30)
    async with Client(running.router) as client, asyncio.timeout(30):
        while sum(model.healthy_workers for model in await client.models()) < 2:
            await asyncio.sleep(0.05)


async def _killed_under(running: Stack, stub: Any, request: GenerateRequest) -> tuple[RouterAnswer, str]:
    """The answer to a request whose executor was killed after its first token, and which it was.

    Once more where it was done with all of it before it was found and killed.
    """
    for _ in range(10):
        answer, killed = RouterAnswer(), ""
        async for event in stub.Generate(request, timeout=60):
            answer.add(event)
            if event.HasField("delta") and not killed:
                killed = await _kill_the_busy_one(running)
        if answer.continued is not None:
            return answer, killed
        await _until_both_serve(running)
    raise AssertionError("no executor was killed before its end")


async def _kill_the_busy_one(running: Stack) -> str:
    """Its address; empty where none is busy."""
    for busy in await _asked(running):
        os.kill(running.pid(busy), signal.SIGKILL)
        return busy
    return ""


async def test_a_client_that_vanishes_frees_its_blocks(stack: Stack) -> None:
    async with Client(stack.router) as client:
        events = client.chat([user("Tell me a story.")], sampling=_GREEDY, stopping=_LONG, timeout=60)
        async for event in events:
            if event.HasField("delta"):
                break
        assert len(await _asked(stack)) == 1
    await until_idle(stack.addresses("executor"))


async def test_a_deadline_ends_the_request_everywhere(stack: Stack) -> None:
    async with Client(stack.router) as client:
        with pytest.raises(WeirError) as caught:
            await collect(client.chat([user("Tell me a story.")], sampling=_GREEDY, stopping=_LONG, timeout=0.4))
    assert reason_name(caught.value.reason) == "DEADLINE_EXCEEDED"
    await until_idle(stack.addresses("executor"))


async def test_a_second_executor_answers_a_shared_prompt_from_the_store(stack: Stack) -> None:
    """Two workers, one long prompt, asked at once: whoever comes second loads the blocks that the first computed."""
    few = StoppingConditions(max_tokens=4)
    async with Client(stack.router) as client:
        # On a busy machine computing a prompt may be sooner than loading it, and then it is computed; not every time. A
        # long one takes longer to compute.
        for number in range(20):
            text = f"{number} boats. " + "The miller counted the boats at the weir, one after another. " * 80
            stored = await _stored_blocks(stack)
            first = await collect(client.generate(text, sampling=_GREEDY, stopping=few))
            async with asyncio.timeout(10):  # blocks are offered in the background
                while await _stored_blocks(stack) < stored + _SHARED_BLOCKS:
                    await asyncio.sleep(0.05)
            busy = await _occupy(client, first.receipt.worker, stack)
            second = await collect(client.generate(text, sampling=_GREEDY, stopping=few))
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)
            assert second.outputs[0].token_ids == first.outputs[0].token_ids
            if second.receipt.store_cached_tokens >= 64:
                break
    assert second.receipt.worker != first.receipt.worker
    assert second.receipt.store_cached_tokens >= 64
    assert second.receipt.store_cached_tokens_by_tier["ram"] == second.receipt.store_cached_tokens
    assert second.usage.cached_prompt_tokens >= second.receipt.store_cached_tokens
    await until_idle(stack.addresses("executor"))


async def _stored_blocks(stack: Stack) -> int:
    async with open_channel(stack.addresses("kvstore")[0]) as channel:
        stats = await KvStoreServiceStub(channel).GetStats(GetStatsRequest(), timeout=20)
    return sum(tier.stored for tier in stats.tiers)


async def _occupy(client: Client, worker: str, stack: Stack) -> asyncio.Task[object]:
    """Keep `worker` busy with one long request, so that the next request goes elsewhere."""
    several = SamplingParameters(temperature=0, n=8)
    for number in range(20):
        events = client.chat([user(f"Tell me story number {number}.")], sampling=several, stopping=_LONG, timeout=60)
        task: asyncio.Task[object] = asyncio.create_task(collect(events))
        while not (task.done() or await _asked(stack)):
            await asyncio.sleep(0.01)
        if worker in await _asked(stack):
            return task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until_idle(stack.addresses("executor"))
    raise AssertionError(f"no request went to {worker}")


async def _asked(stack: Stack) -> list[str]:
    """Executors that have a request."""
    return [address for address in stack.addresses("executor") if (await load_of(address)).live_requests]


async def test_a_slow_reader_slows_only_itself(stack: Stack) -> None:
    async with Client(stack.router) as client:
        slow = client.chat([user("Tell me a story.")], sampling=_GREEDY, stopping=_LONG, timeout=60)
        async for event in slow:
            if event.HasField("delta"):
                break  # reads no further for now
        other = await collect(client.chat([user("Hello")], sampling=_GREEDY, timeout=30))
        assert other.text
    await until_idle(stack.addresses("executor"))


async def test_drain_lets_a_running_stream_finish(tmp_path: Path) -> None:
    running = start_stack(tmp_path)
    stopping = StoppingConditions(max_tokens=300, ignore_eos=True)
    async with Client(running.router) as client:
        tokens = 0
        async for event in client.chat([user("Tell me a story.")], sampling=_GREEDY, stopping=stopping, timeout=60):
            if event.HasField("delta"):
                if tokens == 0:
                    running.process.send_signal(signal.SIGINT)
                tokens += len(event.delta.token_ids)
    assert tokens == 300
    assert running.process.wait(60) == 0
