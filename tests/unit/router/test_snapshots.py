"""The snapshot is the same object until something is another, and then it is right."""

from __future__ import annotations

import asyncio
from dataclasses import FrozenInstanceError

import pytest

from contract.router_contract import Answer, collect
from fakes.executor import FakeExecutor
from fakes.suite import suite
from weir.fleet.v1.instance_pb2 import Instance
from weir.router.v1 import router_pb2 as pb
from weir_router.regions import NO_CLIENT

HELLO = pb.GenerateRequest(text="hello")


async def test_it_is_made_again_only_when_something_has_changed() -> None:
    async with suite(executors=[FakeExecutor(), FakeExecutor()], load_interval_seconds=60.0) as running:
        await running.until(lambda: all(view.load for view in running.fleet.snapshot().executors))
        first = running.fleet.snapshot()
        assert running.fleet.snapshot() is first
        reservation = running.fleet.executor("memory:executor-1", NO_CLIENT).outstanding.reserve(7)
        second = running.fleet.snapshot()
        assert [view.routed_tokens for view in second.executors] == [0, 7]
        assert [view.routed_tokens for view in first.executors] == [0, 0], "one that was taken stays as it is"
        assert second.generation == first.generation, "counts are no facts"
        reservation.release()
        assert running.fleet.snapshot().executors[1].routed_tokens == 0
        with pytest.raises(FrozenInstanceError):
            second.executors[0].routed_tokens = 1  # type: ignore[misc]


async def test_a_request_at_a_postprocess_replica_is_counted_at_once() -> None:
    async with suite(load_interval_seconds=60.0) as running:
        running.executor.pause_after = 1
        answer = Answer()
        task = asyncio.create_task(collect(running.router.Generate(HELLO), answer))
        await running.until(lambda: "delta" in answer.kinds)
        assert running.fleet.snapshot().postprocessors[0].live_requests == 1
        running.executor.resume()
        (await task).check_complete()
        assert running.fleet.snapshot().postprocessors[0].live_requests == 0


async def test_traits_and_adapters_are_facts() -> None:
    async with suite() as running:
        before = running.fleet.snapshot()
        running.executor.adapters["law"] = "f" * 32
        await running.until(lambda: bool(running.fleet.snapshot().executors[0].adapters))
        assert running.fleet.snapshot().generation > before.generation
        running.fakes.workers["executor-0"].identity.describe(Instance(weight=3.0, capacity=5))
        running.fakes.workers["executor-0"].identity.place(region="eu-west")
        running.executor.crash.crash()
        await running.until_serving(2)
        running.executor.crash.revive()
        await running.until_serving()
        (view,) = running.fleet.snapshot().executors
        assert (view.traits.region, view.traits.weight, view.traits.capacity) == ("eu-west", 3.0, 5)
        assert view.traits.instance_id
        assert view.ramp < 1.0, "it has returned"


async def test_an_age_grows_although_nobody_reports() -> None:
    async with suite(load_interval_seconds=60.0) as running:

        def age() -> float:
            load = running.fleet.snapshot().executors[0].load
            return 0.0 if load is None else load.age_seconds

        await running.until(lambda: age() > 0.15)
