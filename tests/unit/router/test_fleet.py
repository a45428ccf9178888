"""Workers come, go, drain and come back; the snapshot, the health of models and the list of models follow."""

from __future__ import annotations

import asyncio

import pytest

from contract.router_contract import Answer, collect, refusal
from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from fakes.tokenizer import FakeTokenizer
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir_router.fleet.postprocess_link import PostprocessLink
from weir_router.fleet.views import WorkerState

HELLO = pb.GenerateRequest(text="hello")


def states(running: Suite) -> list[WorkerState]:
    return [executor.state for executor in running.fleet.snapshot().executors]


async def test_a_worker_that_was_not_there_at_the_start_is_found() -> None:
    executor = FakeExecutor()
    executor.crash.crash()
    async with suite(executors=[executor], ready=False) as running:
        await running.until_serving(2)
        reason, _, error = await refusal(running.router.Generate(HELLO))
        assert (reason, error.message) == ("NO_WORKER", "1 of 1 executors have not said yet what they serve")
        executor.crash.revive()
        await running.until_serving()
        (await collect(running.router.Generate(HELLO))).check_complete()


async def test_a_worker_that_drains_finishes_what_it_has_and_gets_nothing_new() -> None:
    async with suite(executors=[FakeExecutor(), FakeExecutor()]) as running:
        draining, other = running.fakes.executors
        draining.pause_after = other.pause_after = 1
        answer = Answer()
        task = asyncio.create_task(collect(running.router.Generate(HELLO), answer))
        await running.until(lambda: "delta" in answer.kinds)
        if not draining.submits:
            draining, other = other, draining
        index = running.fakes.executors.index(draining)
        running.fakes.workers[f"executor-{index}"].drain()
        await running.until(lambda: states(running)[index] is WorkerState.DRAINING)
        other.resume()
        for _ in range(3):
            await collect(running.router.Generate(HELLO))
        assert (len(draining.submits), len(other.submits)) == (1, 3)
        draining.resume()
        (await task).check_complete()
        assert answer.texts == {0: "hello"}


async def test_a_postprocess_replica_that_drains_is_not_connected_to_again() -> None:
    async with suite() as running:
        running.fakes.workers["postprocess-0"].drain()
        await running.until(lambda: running.num_serving() == 2)
        running.postprocess.crash.crash()
        await running.until(lambda: running.fleet.snapshot().postprocessors[0].state is WorkerState.DOWN)
        running.postprocess.crash.revive()
        (link,) = (link for link in running.fleet.links if link.kind == "postprocess")
        for _ in range(100):
            await asyncio.sleep(0.002)
            assert link.state is WorkerState.DOWN, "it says that it takes nothing new"
        running.fakes.workers["postprocess-0"].health.set(PostprocessLink.service, True)
        await running.until_serving()


async def test_the_health_of_a_model_follows_its_workers() -> None:
    async with suite() as running:
        assert running.chassis.health.is_serving("model:bytes")
        running.executor.crash.crash()
        await running.until(lambda: not running.chassis.health.is_serving("model:bytes"))
        running.executor.crash.revive()
        await running.until(lambda: running.chassis.health.is_serving("model:bytes"))


@pytest.mark.parametrize("kind", ["executor", "tokenizer", "postprocess"])
async def test_a_model_is_healthy_while_a_worker_of_each_kind_is(kind: str) -> None:
    async with suite() as running:
        assert running.chassis.health.is_serving("model:bytes")
        running.fakes.workers[f"{kind}-0"].drain()
        await running.until(lambda: not running.chassis.health.is_serving("model:bytes"))


async def test_models_are_listed_with_their_workers() -> None:
    other = ModelVersion(model="other", revision="r9", tokenizer_hash="1" * 32)
    executors = [FakeExecutor(), FakeExecutor(), FakeExecutor(other)]
    tokenizers = [FakeTokenizer(), FakeTokenizer(other, has_chat_template=False)]
    async with suite(executors=executors, tokenizers=tokenizers) as running:
        executors[1].crash.crash()
        await running.until_serving(5)
        models = (await running.router.ListModels(pb.ListModelsRequest())).models
        rows = [(m.model_version.model, m.workers, m.healthy_workers, m.has_chat_template) for m in models]
        assert rows == [("bytes", 2, 1, True), ("other", 1, 1, False)]
        assert models[0].max_model_len == 512
        reason, _, error = await refusal(running.router.Generate(HELLO))
        assert (reason, error.metadata) == ("INVALID_ARGUMENT", {})
        answer = await collect(running.router.Generate(pb.GenerateRequest(model="bytes", text="hello")))
        assert answer.receipt.worker == "memory:executor-0"


async def test_the_load_of_others_is_polled_and_ours_is_counted() -> None:
    async with suite() as running:
        running.executor.foreign_tokens, running.executor.pause_after = 1000, 1
        await running.until(lambda: running.fleet.snapshot().executors[0].foreign_tokens == 1000)
        message = pb.GenerateRequest(text="hello", stopping=StoppingConditions(max_tokens=50))
        answer = Answer()
        call = running.router.Generate(message)
        task = asyncio.create_task(collect(call, answer))
        await running.until(lambda: "delta" in answer.kinds)
        (view,) = running.fleet.snapshot().executors
        assert view.routed_tokens == 49, "the prompt is prefilled, one token has come"
        assert view.load is not None
        assert view.load.age_seconds < 5
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_tokenizer_that_changes_its_revision_is_noticed() -> None:
    async with suite() as running:
        running.fakes.tokenizers[0].version = ModelVersion(model="bytes", revision="r2", tokenizer_hash="0" * 32)
        await running.until(lambda: bool(running.fleet.snapshot().mismatched()))
        reason, _, _ = await refusal(running.router.Generate(HELLO))
        assert reason == "REVISION_MISMATCH"


async def test_a_worker_that_restarts_with_another_model_is_known_by_it() -> None:
    async with suite() as running:
        running.executor.crash.crash()
        await running.until_serving(2)
        running.executor.version = ModelVersion(model="new", revision="r1", tokenizer_hash="0" * 32)
        running.executor.crash.revive()
        await running.until_serving()
        assert running.fleet.snapshot().known_models() == ["new"]


@pytest.mark.parametrize("missing", ["executors", "tokenizers", "postprocessors"])
async def test_a_fleet_without_a_kind_starts_and_says_so(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    nobody: dict[str, list[object]] = {missing: []}
    async with suite(**nobody) as running:  # type: ignore[arg-type]  # an empty list of whatever kind
        reason, _, _ = await refusal(running.router.Generate(HELLO))
        assert reason == "NO_WORKER"
    assert f"WEIR_ROUTER_{missing.upper()}" in capsys.readouterr().out
