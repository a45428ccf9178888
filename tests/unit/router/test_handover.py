"""Requests that a prefill worker begins and a decode worker ends: the answer of one executor, whatever goes wrong.

`suite` ends each test by checking that no lease, no request, no reservation and no handoff is left anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from contract.router_contract import Answer, collect, refusal
from fakes import bytes_model
from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from weir.executor.v1.executor_pb2 import EXECUTOR_ROLE_DECODE, EXECUTOR_ROLE_PREFILL, RequestEnd
from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import Draining, Internal, InvalidArgument, Overloaded, WeirError
from weir_router.fleet.views import Role
from weir_router.journey import _joined

TEXT = "a prompt of some blocks, and then of a few tokens more"


def request(text: str = TEXT, *, n: int = 1, logprobs: int | None = None, **stopping: Any) -> pb.GenerateRequest:
    sampling = SamplingParameters(n=n, seed=3, logprobs=logprobs)
    return pb.GenerateRequest(text=text, sampling=sampling, stopping=StoppingConditions(**stopping))


def apart(prefills: int = 1, decodes: int = 1, **settings: Any) -> AbstractAsyncContextManager[Suite]:
    """So many of each, the prefill workers first."""
    executors = [FakeExecutor(role=EXECUTOR_ROLE_PREFILL) for _ in range(prefills)]
    executors += [FakeExecutor(role=EXECUTOR_ROLE_DECODE) for _ in range(decodes)]
    return suite(executors=executors, **{"disaggregate_tokens": 1, **settings})


async def of_one(message: pb.GenerateRequest) -> Answer:
    """What one executor answers."""
    async with suite() as running:
        return await collect(running.router.Generate(message))


def check_equal(answer: Answer, wanted: Answer, n: int = 1) -> None:
    answer.check_complete(n)
    assert (answer.token_ids, answer.texts, answer.finished) == (wanted.token_ids, wanted.texts, wanted.finished)
    assert answer.logprobs == wanted.logprobs
    assert answer.usage == wanted.usage


MESSAGES: dict[str, pb.GenerateRequest] = {
    "one": request(),
    "several": request(n=3),
    "logprobs": request(n=2, logprobs=2),
    "max_tokens": request(max_tokens=7),
    "one_token": request(max_tokens=1),
    "stop": request(stop=["blocks"]),
    "stop_at_once": request(stop=["a"]),
    "stop_at_once_of_one": request(n=2, stop=["a"]),  # of the outputs, the first
    "stop_token_at_once": request(n=2, stop_token_ids=[ord("a")]),
    "nothing_but_an_end": request("x", max_tokens=1),
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_the_answer_is_that_of_one_executor(name: str) -> None:
    message = MESSAGES[name]
    wanted = await of_one(message)
    async with apart() as running:
        answer = await collect(running.router.Generate(message))
        check_equal(answer, wanted, message.sampling.n)
        assert answer.receipt.attempts == 1


async def test_what_each_of_the_two_is_given() -> None:
    async with apart() as running:
        answer = await collect(running.router.Generate(request(n=2, max_tokens=9), timeout=20))
        (first,), (second,) = (fake.submits for fake in running.fakes.executors)
        assert (first.hand_off, second.hand_off) == (True, False)
        assert not first.HasField("take_over")
        assert second.take_over.num_blocks == len(TEXT) // bytes_model.BLOCK_SIZE
        assert second.take_over.address == "memory:executor-0"
        prompt = list(TEXT.encode())
        resumed = {output.output_index: list(output.token_ids) for output in second.resumed_outputs}
        assert resumed == {0: prompt[:1], 1: prompt[1:2]}
        for field in ("token_ids", "block_hashes", "sampling", "stopping", "model_version", "request_id", "handle"):
            assert getattr(first, field) == getattr(second, field)
        assert 15 < second.time_left.ToTimedelta().total_seconds() <= 20
        assert (answer.receipt.prefill_worker, answer.receipt.worker) == ("memory:executor-0", "memory:executor-1")


async def test_a_short_prompt_goes_whole_to_who_decodes() -> None:
    async with apart(disaggregate_tokens=len(TEXT) + 1) as running:
        answer = await collect(running.router.Generate(request()))
        check_equal(answer, await of_one(request()))
        assert not running.executor.submits
        assert answer.receipt.prefill_worker == ""


async def test_prefill_and_decode_workers_take_turns() -> None:
    async with apart(2, 2) as running:
        for _ in range(4):
            await collect(running.router.Generate(request()))
        assert [len(fake.submits) for fake in running.fakes.executors] == [2, 2, 2, 2]


async def test_roles_are_known_and_alone_prefill_workers_answer_nobody() -> None:
    async with apart(1, 0) as running:
        assert [executor.role for executor in running.fleet.snapshot().executors] == [Role.PREFILL]
        reason, _, error = await refusal(running.router.Generate(request()))
        assert reason == "NO_WORKER"
        assert "prefill" in error.message
        assert not running.fleet.snapshot().answers("bytes")
        await running.router.Embed(pb.EmbedRequest(inputs=[pb.EmbedInput(text="x")]))  # a prefill and no more


# The prefill worker fails.


async def _nothing_came(running: Suite) -> None:
    await running.until(lambda: running.executor.live == 1)


async def _first_token_came(running: Suite) -> None:
    """And the worker does not say that it is done."""
    await running.until(lambda: running.executor.steps > 0)


BEFORE: dict[str, tuple[Callable[[FakeExecutor], None], Callable[[Suite], Any]]] = {
    "its first token": (lambda fake: setattr(fake, "pause_after", 0), _nothing_came),
    "its handoff": (lambda fake: setattr(fake, "forgets_ends", True), _first_token_came),
}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("when", BEFORE)
async def test_a_prefill_worker_lost_in_the_middle_costs_nothing(when: str, n: int) -> None:
    prepare, reached = BEFORE[when]
    async with apart() as running:
        prepare(running.executor)
        task = asyncio.create_task(collect(running.router.Generate(request(n=n))))
        await reached(running)
        running.executor.crash.crash()
        check_equal(await task, await of_one(request(n=n)), n)
        assert not running.fakes.executors[1].submits[0].HasField("take_over")


async def test_a_prefill_worker_lost_after_its_handoff_costs_nothing() -> None:
    async with apart() as running:
        running.fakes.executors[1].running.clear()
        task = asyncio.create_task(collect(running.router.Generate(request())))
        await running.until(lambda: bool(running.fakes.executors[1].submits))
        running.executor.crash.crash()
        running.fakes.executors[1].running.set()
        check_equal(await task, await of_one(request()))


@pytest.mark.parametrize("error", [Overloaded("full"), Draining("going")])
async def test_a_prefill_worker_that_takes_nothing_is_passed_over(error: WeirError) -> None:
    async with apart() as running:
        running.executor.refusal = error
        answer = await collect(running.router.Generate(request()))
        check_equal(answer, await of_one(request()))
        assert answer.receipt.prefill_worker == ""


async def test_what_is_the_clients_fault_is_told_and_not_tried_elsewhere() -> None:
    async with apart() as running:
        running.executor.refusal = InvalidArgument("sampling.guide", "is no grammar")
        reason, _, error = await refusal(running.router.Generate(request()))
        assert (reason, "no grammar" in error.message) == ("INVALID_ARGUMENT", True)
        assert not running.fakes.executors[1].submits


# The decode worker fails.


async def test_a_decode_worker_lost_before_it_has_said_anything_is_replaced() -> None:
    async with apart(1, 2) as running:
        for fake in running.fakes.executors[1:]:
            fake.pause_after = 1
        task = asyncio.create_task(collect(running.router.Generate(request())))
        first, second = running.fakes.executors[1:]
        await running.until(lambda: bool(first.submits or second.submits))
        lost, other = (first, second) if first.submits else (second, first)
        lost.crash.crash()
        await running.until(lambda: bool(other.submits))
        assert other.submits[0].HasField("take_over"), "the blocks are held until somebody has them"
        other.resume()
        check_equal(await task, await of_one(request()))


async def test_decode_workers_are_not_killed_one_after_another() -> None:
    async with apart(1, 3, max_continuations=1) as running:
        for fake in running.fakes.executors[1:]:
            fake.refusal = Internal("a step failed")
        reason, _, _ = await refusal(running.router.Generate(request()))
        assert reason == "INTERNAL"
        assert sum(len(fake.submits) for fake in running.fakes.executors[1:]) == 2


async def test_no_decode_worker_is_left_when_the_prompt_is_done() -> None:
    async with apart() as running:
        running.executor.running.clear()
        task = asyncio.create_task(refusal(running.router.Generate(request())))
        await running.until(lambda: bool(running.executor.submits))
        running.fakes.executors[1].crash.crash()
        await running.until(lambda: running.num_serving() == 3)
        running.executor.running.set()
        reason, _, _ = await task
        assert reason == "NO_WORKER"


# The client fails.


@pytest.mark.parametrize("stage", [0, 1])
async def test_a_client_that_leaves_leaves_nothing_on_either_side(stage: int) -> None:
    async with apart() as running:
        running.fakes.executors[stage].running.clear()
        call = running.router.Generate(request())
        task = asyncio.create_task(collect(call))
        await running.until(lambda: bool(running.fakes.executors[stage].submits))
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)
        running.fakes.executors[stage].running.set()
        await running.until_idle()


# What is told of the two.


def test_of_two_ends_one_is_told() -> None:
    def end(cached: int, drafts: int, **seconds: float) -> RequestEnd:
        message = RequestEnd(engine_cached_tokens=cached, store_cached_tokens=100 * cached, preemptions=1)
        message.usage.CopyFrom(Usage(prompt_tokens=50, cached_prompt_tokens=cached, draft_tokens=drafts))
        for name, value in seconds.items():
            getattr(message, name).FromMilliseconds(round(value * 1e3))
        return message

    first, last = end(16, 1, queue=1, prefill=2), end(48, 5, queue=4, prefill=8, decode=16)
    told = _joined(first, last)
    assert (told.usage.cached_prompt_tokens, told.engine_cached_tokens, told.store_cached_tokens) == (16, 16, 1600)
    assert (told.usage.draft_tokens, told.preemptions) == (6, 2)
    assert [d.ToTimedelta().total_seconds() for d in (told.queue, told.prefill, told.decode)] == [1, 2, 28]
    assert _joined(None, last) == last
