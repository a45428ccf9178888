"""Calls to a worker that is silent are given up, and made to another one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contract.router_contract import collect, refusal
from fakes.executor import FakeExecutor
from fakes.suite import suite
from fakes.tokenizer import FakeTokenizer
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import Internal, WorkerLost
from weir_router.fleet.asked import Asked

# Silent for so long, a worker is not waited for; it is lost only after a minute.
IMPATIENT: dict[str, Any] = {"stall_seconds": 0.2, "probe_timeout_seconds": 0.1}


async def test_an_answer_and_an_error_come_as_they_are() -> None:
    asked, done = Asked("executor", "e:1"), asyncio.get_running_loop().create_future()

    async def fails() -> None:
        raise Internal("of itself")

    done.set_result(7)
    assert await asked.answer(done) == 7
    with pytest.raises(Internal, match="of itself"):
        await asked.answer(fails())
    assert not len(asked)


async def test_all_that_wait_are_given_up_and_who_comes_later_is_not() -> None:
    asked = Asked("executor", "e:1")
    waiting = [asyncio.create_task(asked.answer(asyncio.Event().wait())) for _ in range(3)]
    await asyncio.sleep(0)
    asked.give_up(12.0)
    for task in waiting:
        with pytest.raises(WorkerLost, match="executor e:1 was lost: it has answered nothing for 12 s") as caught:
            await task
        assert caught.value.metadata == {"worker": "e:1"}
    assert not len(asked)
    assert await asked.answer(asyncio.sleep(0, "later")) == "later"


async def test_whoever_is_cancelled_itself_cancels_its_call() -> None:
    asked, call = Asked("executor", "e:1"), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(asked.answer(call))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.cancelled()


async def test_a_tokenizer_that_hangs_costs_a_moment_and_not_the_clients_patience() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    async with suite(tokenizers=tokenizers, **IMPATIENT) as running:
        tokenizers[0].running.clear()
        async with asyncio.timeout(15):
            for _ in range(2):
                answer = await collect(running.router.Generate(pb.GenerateRequest(text="hello")))
                assert answer.texts == {0: "hello"}
        assert all(tokenizer.calls for tokenizer in tokenizers)
        tokenizers[0].running.set()


async def test_a_tokenizer_that_hangs_alone_is_named() -> None:
    async with suite(**IMPATIENT) as running:
        running.fakes.tokenizers[0].running.clear()
        reason, _, error = await refusal(running.router.Generate(pb.GenerateRequest(text="hello"), timeout=60))
        assert (reason, error.metadata) == ("WORKER_LOST", {"worker": "memory:tokenizer-0"})
        running.fakes.tokenizers[0].running.set()


async def test_an_executor_that_hangs_costs_an_embedding_a_moment() -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    async with suite(executors=executors, **IMPATIENT) as running:
        executors[0].deaf = True
        executors[0].running.clear()
        request = pb.EmbedRequest(inputs=[pb.EmbedInput(text="hello")])
        async with asyncio.timeout(15):
            for _ in range(2):
                assert (await running.router.Embed(request)).embeddings
        executors[0].running.set()
