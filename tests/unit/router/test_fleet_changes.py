"""The fleet changes while the router runs: workers come, leave, die and are heard of in whatever way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from contract.router_contract import Answer, collect, refusal
from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from weir.fleet.v1.instance_pb2 import Instance
from weir.router.v1 import router_pb2 as pb
from weir_chassis.broker import Message
from weir_chassis.errors import WorkerLost
from weir_chassis.fleet.wire import subject
from weir_chassis.inmemory.broker import InMemoryBus
from weir_router.fleet import fleet as fleet_module
from weir_router.fleet.views import WorkerState
from weir_router.regions import NO_CLIENT

HELLO = pb.GenerateRequest(text="hello")
LEASE_SECONDS = 0.4


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_REFRESH_SECONDS", 0.02)


@asynccontextmanager
async def announcing(running: Suite, bus: InMemoryBus, *names: str) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(running.fakes.workers[name].announced(bus, f"memory:{name}", LEASE_SECONDS))
        await running.until(lambda: {f"memory:{name}" for name in names} <= serving(running))
        yield


def serving(running: Suite) -> set[str]:
    return {link.address for link in running.fleet.links if link.current_state() is WorkerState.SERVING}


async def test_a_router_that_was_told_of_nobody_finds_who_comes_later() -> None:
    bus = InMemoryBus()
    async with suite(bus=bus) as running:
        reason, _, _ = await refusal(running.router.Generate(HELLO))
        assert reason == "NO_WORKER"
        async with announcing(running, bus, "executor-0", "tokenizer-0", "postprocess-0"):
            (await collect(running.router.Generate(HELLO))).check_complete()
        await running.until(lambda: not running.fleet.links)
        reason, _, error = await refusal(running.router.Generate(pb.GenerateRequest(model="bytes", text="x")))
        assert (reason, error.message) == ("NO_WORKER", "every executor that served 'bytes' has left")
        assert not running.chassis.health.is_serving("model:bytes")


async def test_a_worker_that_dies_is_gone_when_its_lease_has_lapsed() -> None:
    bus = InMemoryBus()
    async with suite(executors=[FakeExecutor(), FakeExecutor()], bus=bus) as running, AsyncExitStack() as stack:
        await stack.enter_async_context(announcing(running, bus, "executor-1", "tokenizer-0", "postprocess-0"))
        dying = AsyncExitStack()
        await dying.enter_async_context(announcing(running, bus, "executor-0"))
        running.executor.crash.crash()
        with suppress(asyncio.CancelledError):  # it has no time to say that it leaves
            await dying.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)
        await running.until(lambda: len(running.fleet.snapshot().executors) == 1)
        (await collect(running.router.Generate(HELLO))).check_complete()


async def test_a_lost_broker_takes_away_nobody_that_answers() -> None:
    bus = InMemoryBus()
    async with (
        suite(bus=bus) as running,
        announcing(running, bus, "executor-0", "tokenizer-0", "postprocess-0"),
    ):
        for broker in bus.brokers:
            broker.lose()
        before = running.fleet.snapshot().executors[0].traits
        await asyncio.sleep(3 * LEASE_SECONDS)
        assert len(serving(running)) == 3
        (await collect(running.router.Generate(HELLO))).check_complete()
        assert running.fleet.snapshot().executors[0].traits == before
        running.executor.crash.crash()
        await running.until(lambda: not running.fleet.snapshot().executors)
        running.executor.crash.revive()
        for broker in bus.brokers:
            broker.restore()
        await running.until(lambda: len(serving(running)) == 3)


async def test_a_worker_that_leaves_keeps_its_streams_gets_nothing_new_and_is_let_go_at_their_end() -> None:
    bus = InMemoryBus()
    async with suite(executors=[FakeExecutor(), FakeExecutor()], bus=bus) as running, AsyncExitStack() as stack:
        await stack.enter_async_context(announcing(running, bus, "executor-1", "tokenizer-0", "postprocess-0"))
        leaving = running.executor
        leaving.pause_after = 1
        async with announcing(running, bus, "executor-0"):
            answer, task = await streaming_on(running, leaving)
        await running.until(lambda: state_of(running, "memory:executor-0") is WorkerState.DRAINING)
        submits = len(leaving.submits)
        for _ in range(3):
            (await collect(running.router.Generate(HELLO))).check_complete()
        assert (len(leaving.submits), answer.texts.get(0)) == (submits, "h")
        leaving.resume()
        (await task).check_complete()
        assert answer.texts == {0: "hello"}
        await running.until(lambda: state_of(running, "memory:executor-0") is None)
        with pytest.raises(WorkerLost, match="has left the fleet"):
            running.fleet.executor("memory:executor-0", NO_CLIENT)


async def streaming_on(running: Suite, executor: FakeExecutor) -> tuple[Answer, asyncio.Task[Answer]]:
    """A request that has begun there."""
    for _ in range(10):
        count, answer = len(executor.submits), Answer()
        task = asyncio.create_task(collect(running.router.Generate(HELLO), answer))
        await running.until(lambda answer=answer: "delta" in answer.kinds)  # type: ignore[misc]
        if len(executor.submits) > count:
            return answer, task
        await task
    raise AssertionError("no request went there")


def state_of(running: Suite, address: str) -> WorkerState | None:
    return next((view.state for view in running.fleet.snapshot().executors if view.address == address), None)


async def test_one_that_comes_back_before_its_streams_end_is_not_let_go() -> None:
    bus = InMemoryBus()
    async with suite(bus=bus) as running, AsyncExitStack() as stack:
        await stack.enter_async_context(announcing(running, bus, "tokenizer-0", "postprocess-0"))
        running.executor.pause_after = 1
        async with announcing(running, bus, "executor-0"):
            _, task = await streaming_on(running, running.executor)
            (link,) = (link for link in running.fleet.links if link.kind == "executor")
        await running.until(lambda: link.leaving)
        # Another process at its address: this one's own echoes are not believed so soon.
        again = running.fakes.workers["executor-0"].identity.instance()
        again.instance_id, again.epoch = "another", again.epoch + 1
        again.lease.FromSeconds(3600)
        bus.publish(Message(subject(again), again.SerializeToString()))
        await running.until(lambda: not link.leaving)
        running.executor.resume()
        (await task).check_complete()
        assert link in running.fleet.links


async def test_what_a_worker_announces_of_itself_is_seen_at_once() -> None:
    bus = InMemoryBus()
    async with suite(bus=bus) as running, announcing(running, bus, "executor-0"):
        running.fakes.workers["executor-0"].identity.describe(Instance(weight=4.0, capabilities=["guides"]))
        await running.until(lambda: running.fleet.snapshot().executors[0].traits.weight == 4.0)
        assert running.fleet.snapshot().executors[0].traits.capabilities == {"guides"}


async def test_workers_that_come_and_go_cost_no_request() -> None:
    bus = InMemoryBus()
    async with (
        suite(executors=[FakeExecutor() for _ in range(4)], bus=bus) as running,
        announcing(running, bus, "tokenizer-0", "postprocess-0", "executor-3"),
    ):

        async def come_and_go(name: str) -> None:
            async with announcing(running, bus, name):
                await asyncio.sleep(0.05)
            await running.until(lambda: state_of(running, f"memory:{name}") is None)

        visits = [asyncio.create_task(come_and_go(f"executor-{number}")) for number in range(3)]
        while not all(task.done() for task in visits):
            (await collect(running.router.Generate(HELLO, timeout=10))).check_complete()
        await asyncio.gather(*visits)
