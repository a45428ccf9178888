"""A tokenizer is asked over one stream: what becomes of asks when it is old, drains, is lost, or nobody waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contract.router_contract import collect, refusal
from fakes.suite import Suite, suite
from fakes.tokenizer import FakeTokenizer
from weir.inference.v1.model_pb2 import ModelVersion
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import Draining, Internal, Overloaded, WorkerLost
from weir_router.fleet.problems import problems
from weir_router.fleet.views import WorkerState


def request(text: str = "hello") -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text)


def told(running: Suite) -> list[str]:
    return problems(running.fleet.snapshot(), {}, ())


async def test_many_requests_are_asked_together_and_answered_each_with_its_own() -> None:
    async with suite() as running:
        texts = [f"text {index}" for index in range(40)]
        answers = await asyncio.gather(*(collect(running.router.Generate(request(text))) for text in texts))
        assert [answer.texts[0] for answer in answers] == texts
        assert running.fakes.tokenizers[0].streams == 1


async def test_one_that_is_older_than_the_stream_is_named_and_given_nothing() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    tokenizers[0].has_encode = False
    async with suite(tokenizers=tokenizers, ready=False) as running:
        await running.until_serving(3)
        await running.until(lambda: bool(told(running)))
        assert told(running) == [
            "tokenizer memory:tokenizer-0 is older than this router and is given no requests: upgrade it first"
        ]
        for _ in range(3):
            assert (await collect(running.router.Generate(request()))).texts == {0: "hello"}
        assert (tokenizers[0].calls, tokenizers[1].calls) == (0, 3)
        tokenizers[0].has_encode = True
        await running.until_serving()
        assert not told(running)


async def test_nobody_but_an_old_one_is_nobody() -> None:
    tokenizers = [FakeTokenizer()]
    tokenizers[0].has_encode = False
    async with suite(tokenizers=tokenizers, ready=False) as running:
        await running.until_serving(2)
        await running.until(lambda: any("is older than this router" in problem for problem in told(running)))
        reason, _, _ = await refusal(running.router.Generate(request()))
        assert reason == "NO_WORKER"


@pytest.mark.parametrize("error", [WorkerLost("the connection broke"), Draining("it stops"), Internal("a bug")])
async def test_a_stream_that_ends_under_its_asks_has_them_answered_elsewhere(
    error: WorkerLost | Draining | Internal,
) -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    async with suite(tokenizers=tokenizers) as running:
        tokenizers[0].running.clear()
        calls = [asyncio.ensure_future(collect(running.router.Generate(request()))) for _ in range(4)]
        await running.until(lambda: tokenizers[0].calls == 2)
        tokenizers[0].crash.crash(error)
        assert [answer.texts for answer in await asyncio.gather(*calls)] == [{0: "hello"}] * 4
        tokenizers[0].crash.revive()
        tokenizers[0].running.set()
        await running.until_serving()
        for _ in range(2):
            assert (await collect(running.router.Generate(request()))).texts == {0: "hello"}


async def test_one_that_drains_finishes_what_it_was_asked_and_is_asked_no_more() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    async with suite(tokenizers=tokenizers) as running:
        tokenizers[0].delay_seconds = 0.2
        calls = [asyncio.ensure_future(collect(running.router.Generate(request()))) for _ in range(2)]
        await running.until(lambda: tokenizers[0].calls == 1)
        running.fakes.workers["tokenizer-0"].drain()
        await running.until(lambda: running.fleet.snapshot().tokenizers[0].state is WorkerState.DRAINING)
        answers = await asyncio.gather(*calls, *(collect(running.router.Generate(request())) for _ in range(3)))
        assert [answer.texts for answer in answers] == [{0: "hello"}] * 5
        assert (tokenizers[0].calls, tokenizers[1].calls) == (1, 4)


async def test_those_that_drain_cost_a_request_none_of_its_tries() -> None:
    tokenizers = [FakeTokenizer() for _ in range(5)]
    for draining in tokenizers[:3]:
        draining.error = Draining("it stops")
    tokenizers[3].error = WorkerLost("it broke")
    async with suite(tokenizers=tokenizers) as running:
        for _ in range(5):  # each of them is the first in its turn
            assert (await collect(running.router.Generate(request()))).texts == {0: "hello"}
        assert all(tokenizer.calls for tokenizer in tokenizers)


async def test_a_request_that_two_have_failed_is_given_to_no_third() -> None:
    tokenizers = [FakeTokenizer() for _ in range(3)]
    for failing in tokenizers:
        failing.error = Internal("no vocabulary")
    async with suite(tokenizers=tokenizers) as running:
        reason, _, _ = await refusal(running.router.Generate(request()))
        assert (reason, sum(tokenizer.calls for tokenizer in tokenizers)) == ("INTERNAL", 2)


async def test_when_all_drain_that_is_what_is_said() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    for draining in tokenizers:
        draining.error = Draining("it stops")
    async with suite(tokenizers=tokenizers) as running:
        reason, _, _ = await refusal(running.router.Generate(request()))
        assert (reason, [tokenizer.calls for tokenizer in tokenizers]) == ("DRAINING", [1, 1])


async def test_a_client_that_goes_withdraws_what_was_asked_for_it() -> None:
    async with suite() as running:
        tokenizer = running.fakes.tokenizers[0]
        tokenizer.delay_seconds = 60.0
        call = running.router.Generate(request())
        task = asyncio.ensure_future(collect(call))
        await running.until(lambda: tokenizer.live == 1)
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await running.until(lambda: tokenizer.live == 0)


async def test_a_tokenizer_that_is_full_is_not_to_blame_and_another_is_asked() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    tokenizers[0].error = Overloaded("too much is being encoded")
    async with suite(tokenizers=tokenizers) as running:
        for _ in range(20):
            assert (await collect(running.router.Generate(request()))).texts == {0: "hello"}
        assert not any(tokenizer.ejected for tokenizer in running.fleet.snapshot().tokenizers)


async def test_one_that_fails_again_and_again_is_ejected_by_its_breaker() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    tokenizers[0].error = Internal("no vocabulary")
    async with suite(tokenizers=tokenizers) as running:
        for _ in range(12):
            assert (await collect(running.router.Generate(request()))).texts == {0: "hello"}
        assert [tokenizer.ejected for tokenizer in running.fleet.snapshot().tokenizers] == [True, False]


async def test_one_that_says_it_is_well_and_answers_no_ask_is_lost_too() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    async with suite(tokenizers=tokenizers, stall_seconds=0.1, no_progress_seconds=0.3) as running:
        tokenizers[0].delay_seconds = 3600.0
        async with asyncio.timeout(20):  # sooner than one ask is given up by itself
            for _ in range(2):
                assert (await collect(running.router.Generate(request()))).texts == {0: "hello"}
        assert (tokenizers[0].calls, tokenizers[1].calls) == (1, 2)


async def test_what_it_holds_from_now_on_is_known() -> None:
    async with suite() as running:
        running.fakes.tokenizers[0].version = ModelVersion(model="other", revision="1", tokenizer_hash="t")
        await running.until(lambda: running.fleet.snapshot().tokenizers[0].models[0].version.model == "other")


async def test_one_that_hangs_under_its_asks_is_given_up_and_lost_at_last() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    patience: dict[str, Any] = {"stall_seconds": 0.2, "probe_timeout_seconds": 0.1, "no_progress_seconds": 0.6}
    async with suite(tokenizers=tokenizers, **patience) as running:
        tokenizers[0].running.clear()
        async with asyncio.timeout(30):
            for _ in range(2):
                assert (await collect(running.router.Generate(request()))).texts == {0: "hello"}
        await running.until(lambda: running.fleet.snapshot().tokenizers[0].state is WorkerState.DOWN)
        tokenizers[0].running.set()
        await running.until_serving()
