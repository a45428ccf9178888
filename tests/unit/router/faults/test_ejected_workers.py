"""Through a real router and fake workers: who fails is left out and comes back; what clients do wrong trips nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contract.router_contract import Answer, collect, refusal
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.suite import Suite, suite
from fakes.tokenizer import FakeTokenizer
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import Draining, Internal, InvalidArgument, Overloaded, WeirError
from weir_router.fleet.snapshot import FleetSnapshot

# Quick pauses, and as many extra tries as the test makes.
QUICK: dict[str, Any] = {
    "eject_failures": 3,
    "eject_first_seconds": 0.2,
    "eject_longest_seconds": 0.4,
    "retry_budget_floor": 10_000,
}


def request(text: str = "hello", **stopping: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text, stopping=StoppingConditions(**stopping))


async def ask(running: Suite, count: int = 1) -> list[Answer]:
    answers = [await collect(running.router.Generate(request())) for _ in range(count)]
    assert all(answer.texts == {0: "hello"} for answer in answers)
    return answers


def ejected(snapshot: FleetSnapshot) -> set[str]:
    kinds = (snapshot.executors, snapshot.tokenizers, snapshot.postprocessors)
    return {worker.address for kind in kinds for worker in kind if worker.ejected}


async def test_a_worker_that_fails_every_request_is_left_out_and_comes_back_by_probe() -> None:
    bad, good = FakeExecutor(), FakeExecutor()
    bad.refusal = Internal("a step failed")
    async with suite(executors=[bad, good], **QUICK) as running:
        while not ejected(running.fleet.snapshot()):
            await ask(running)
        assert ejected(running.fleet.snapshot()) == {"memory:executor-0"}
        assert len(bad.submits) == 3, "three in a row"
        answers = await ask(running, 10)
        tried = len(bad.submits) - 3
        assert sum(answer.receipt.attempts - 1 for answer in answers) == tried <= 3, "pauses between trials"
        bad.refusal = None
        await running.until(lambda: not running.fleet.snapshot().executors[0].ejected)
        answers = await ask(running, 4)
        assert all(answer.receipt.attempts == 1 for answer in answers)
        await running.until(lambda: not ejected(running.fleet.snapshot()))
        assert {answer.receipt.worker for answer in await ask(running, 4)} == {f"memory:executor-{i}" for i in (0, 1)}


async def test_one_request_at_a_time_tries_a_worker_that_may_be_well_again() -> None:
    bad, good = FakeExecutor(), FakeExecutor()
    bad.refusal = Internal("a step failed")
    slower = {"eject_first_seconds": 1.0, "eject_longest_seconds": 1.0}
    async with suite(executors=[bad, good], **QUICK | slower) as running:
        while not ejected(running.fleet.snapshot()):
            await ask(running)
        bad.refusal, bad.pause_after = None, 0
        await running.until(lambda: not running.fleet.snapshot().executors[0].ejected)
        before = len(bad.submits)
        calls = [asyncio.create_task(collect(running.router.Generate(request()))) for _ in range(8)]
        await running.until(lambda: sum(call.done() for call in calls) >= 7)
        assert len(bad.submits) - before <= 2, (
            "one, and another when the first has shown nothing for as long as a pause"
        )
        bad.resume()
        for call in calls:
            assert (await call).texts == {0: "hello"}
        await running.until(lambda: not ejected(running.fleet.snapshot()))


async def test_the_only_worker_is_used_whatever_it_does() -> None:
    async with suite(**QUICK) as running:
        running.executor.refusal = Internal("a step failed")
        for _ in range(10):
            reason, _, _ = await refusal(running.router.Generate(request()))
            assert reason == "INTERNAL", "and never that there is nobody"
        assert len(running.executor.submits) == 10
        assert not ejected(running.fleet.snapshot())
        running.executor.refusal = None
        await ask(running)


async def test_where_all_fail_half_of_them_go_on() -> None:
    executors = [FakeExecutor() for _ in range(4)]
    for executor in executors:
        executor.refusal = Internal("a bad rollout")
    async with suite(
        executors=executors, **QUICK | {"eject_first_seconds": 5.0, "eject_longest_seconds": 5.0}
    ) as running:
        for _ in range(20):
            await refusal(running.router.Generate(request()))
        assert len(ejected(running.fleet.snapshot())) == 2
        for executor in executors:
            executor.refusal = None
        await ask(running, 4)


@pytest.mark.parametrize(
    "error",
    [InvalidArgument("sampling.top_k", "is not to my taste"), Overloaded("full"), Draining("going")],
    ids=lambda error: type(error).__name__,
)
async def test_a_flood_of_what_is_no_workers_fault_trips_nothing(error: WeirError) -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    async with suite(executors=executors, tokenizers=tokenizers, **QUICK) as running:
        for worker in executors:
            worker.refusal = error
        for _ in range(30):
            await refusal(running.router.Generate(request()))
        for worker in executors:
            worker.refusal = None
        for tokenizer in tokenizers:
            tokenizer.error = error
        for _ in range(30):
            await refusal(running.router.Generate(request()))
        for tokenizer in tokenizers:
            tokenizer.error = None
        assert not ejected(running.fleet.snapshot())
        await ask(running, 2)


async def test_deadlines_and_clients_that_leave_trip_nothing() -> None:
    async with suite(executors=[FakeExecutor(), FakeExecutor()], **QUICK) as running:
        for executor in running.fakes.executors:
            executor.pause_after = 1
        calls = [running.router.Generate(request(ignore_eos=True), timeout=0.1) for _ in range(20)]
        for result in await asyncio.gather(*(refusal(call) for call in calls)):
            assert result[0] == "DEADLINE_EXCEEDED"
        for _ in range(20):
            call = running.router.Generate(request(ignore_eos=True))
            reading = asyncio.create_task(collect(call))
            await running.until(lambda: any(executor.live for executor in running.fakes.executors))
            call.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert not ejected(running.fleet.snapshot())


async def test_a_tokenizer_and_a_postprocess_replica_that_fail_are_left_out_too() -> None:
    tokenizers, replicas = [FakeTokenizer(), FakeTokenizer()], [FakePostprocess(), FakePostprocess()]
    tokenizers[0].error = replicas[0].error = Internal("broken")
    async with suite(tokenizers=tokenizers, postprocessors=replicas, **QUICK) as running:
        async with asyncio.timeout(20):
            while len(ejected(running.fleet.snapshot())) < 2:
                await ask(running)
        assert ejected(running.fleet.snapshot()) <= {"memory:tokenizer-0", "memory:postprocess-0"}
        tokenizers[0].error = replicas[0].error = None
        async with asyncio.timeout(20):
            while ejected(running.fleet.snapshot()):
                await ask(running)


async def test_the_retries_of_a_failing_fleet_stay_within_the_budget() -> None:
    executors = [FakeExecutor() for _ in range(3)]
    for executor in executors:
        executor.refusal = Overloaded("full")
    async with suite(executors=executors, retry_budget_floor=2) as running:
        for _ in range(50):
            await refusal(running.router.Generate(request()))
        assert sum(len(executor.submits) for executor in executors) == 50 + 5, "a tenth more than was asked for"
