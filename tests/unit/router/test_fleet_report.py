"""The operators' door: who is there, how it was found, what it says and what is routed to it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from contract.router_contract import Answer, collect
from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from weir.fleet.v1.instance_pb2 import INSTANCE_KIND_EXECUTOR, INSTANCE_KIND_KVSTORE, INSTANCE_KIND_PROVIDER, Instance
from weir.router.v1 import fleet_pb2 as pb
from weir.router.v1 import router_pb2
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir_chassis.broker import Message
from weir_chassis.fleet.wire import subject
from weir_chassis.inmemory.broker import InMemoryBus
from weir_router.fleet import fleet as fleet_module

HELLO = router_pb2.GenerateRequest(text="hello")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_REFRESH_SECONDS", 0.02)


async def get(running: Suite) -> pb.GetFleetResponse:
    return await FleetServiceStub(running.channel).GetFleet(pb.GetFleetRequest(), timeout=5)


async def test_every_worker_is_told_of_with_its_load_and_what_is_routed_to_it() -> None:
    async with suite(regions=["eu"]) as running:
        running.executor.pause_after = 1
        answer = Answer()
        task = asyncio.create_task(collect(running.router.Generate(HELLO), answer))
        await running.until(lambda: "delta" in answer.kinds)
        await running.until(
            lambda: (view := running.fleet.snapshot().executors[0].load) is not None and bool(view.running_sequences)
        )
        seen = await get(running)
        executor, tokenizer, postprocess = seen.workers
        assert [worker.source for worker in seen.workers] == ["static"] * 3
        assert {worker.state for worker in seen.workers} == {pb.WORKER_STATE_SERVING}
        assert {worker.instance.region for worker in seen.workers} == {"eu"}
        assert (executor.instance.kind, executor.instance.address) == (INSTANCE_KIND_EXECUTOR, "memory:executor-0")
        assert (executor.routed_requests, executor.load.running_sequences, executor.load.total_blocks) == (1, 1, 1024)
        assert executor.routed_tokens > 0
        assert [version.model for version in executor.instance.model_versions] == ["bytes"]
        assert [version.model for version in tokenizer.instance.model_versions] == ["bytes"]
        assert (postprocess.routed_requests, postprocess.HasField("load")) == (1, False)
        assert list(seen.problems) == []
        running.executor.resume()
        (await task).check_complete()


async def test_a_worker_that_is_down_is_told_of_and_so_is_what_that_means() -> None:
    async with suite(executors=[FakeExecutor(), FakeExecutor()]) as running:
        running.executor.crash.crash()
        await running.until_serving(3)
        seen = await get(running)
        assert [worker.state for worker in seen.workers[:2]] == [pb.WORKER_STATE_DOWN, pb.WORKER_STATE_SERVING]
        assert list(seen.problems) == []
        running.fakes.workers["executor-1"].drain()
        await running.until_serving(2)
        assert list((await get(running)).problems) == [
            "no executor is healthy: 2 are known",
            "a request for model 'bytes' would find no worker of each kind",
        ]


async def test_a_new_worker_ramps_up() -> None:
    async with suite(slow_start_seconds=3600.0) as running:
        assert [worker.ramp for worker in (await get(running)).workers] == [1.0, 1.0, 1.0], "new to this router only"
        running.executor.crash.crash()
        await running.until_serving(2)
        running.executor.crash.revive()
        await running.until_serving()
        assert (await get(running)).workers[0].ramp == pytest.approx(0.1)


async def test_one_that_is_found_by_announcement_and_one_that_is_no_routers_business() -> None:
    bus = InMemoryBus()
    async with suite(bus=bus) as running:
        kvstore = Instance(instance_id="k", kind=INSTANCE_KIND_KVSTORE, address="k:1", draining=True)
        kvstore.lease.FromSeconds(60)
        async with running.fakes.workers["tokenizer-0"].announced(bus, "memory:tokenizer-0", 60.0):
            await running.until_serving(1)
            bus.publish(Message(subject(kvstore), kvstore.SerializeToString()))
            await running.until(lambda: bool(running.fleet.sources.others()))
            seen = await get(running)
            told = {worker.instance.address: (worker.source, worker.state) for worker in seen.workers}
            assert told == {
                "memory:tokenizer-0": ("announced", pb.WORKER_STATE_SERVING),
                "k:1": ("announced", pb.WORKER_STATE_DRAINING),
            }
            for broker in bus.brokers:
                broker.lose()
            await running.until(lambda: bool(running.fleet.sources.unheard()))
            assert any("the broker does not answer" in problem for problem in (await get(running)).problems)


async def test_one_that_has_left_and_finishes_its_streams_has_no_source() -> None:
    bus = InMemoryBus()
    async with suite(bus=bus) as running:
        running.executor.pause_after = 1
        workers = running.fakes.workers
        async with (
            workers["tokenizer-0"].announced(bus, "memory:tokenizer-0", 60.0),
            workers["postprocess-0"].announced(bus, "memory:postprocess-0", 60.0),
        ):
            async with workers["executor-0"].announced(bus, "memory:executor-0", 60.0):
                await running.until_serving(3)
                answer = Answer()
                task = asyncio.create_task(collect(running.router.Generate(HELLO), answer))
                await running.until(lambda: "delta" in answer.kinds)
            await running.until(lambda: running.num_serving() == 2)
            executor = (await get(running)).workers[0]
            assert (executor.source, executor.state) == ("", pb.WORKER_STATE_DRAINING)
            running.executor.resume()
            (await task).check_complete()


async def test_a_worker_outside_the_suite_is_told_of_as_the_file_does(tmp_path: Path) -> None:
    config, key = tmp_path / "routing.toml", tmp_path / "key"
    key.write_text("secret")
    config.write_text(f"""
[[providers]]
name = "p"
base_url = "http://127.0.0.1:9"
api_key_file = "{key}"
models = {{ outside = "theirs" }}
capabilities = ["chat"]
region = "us"
price = {{ prompt_micros = 5, completion_micros = 7 }}
""")
    async with suite(config_file=config) as running:
        provider = (await get(running)).workers[-1]
        assert (provider.instance.kind, provider.instance.address) == (INSTANCE_KIND_PROVIDER, "provider:p")
        assert (provider.instance.region, provider.instance.price.completion_micros) == ("us", 7)
        assert (provider.state, provider.source) == (pb.WORKER_STATE_DOWN, "configured")
        running.fleet.refresh()
        running.fleet.refresh()
        assert running.fleet.snapshot().departed == frozenset(), "no executor of its models has left"


async def test_nobody_asks_in_vain() -> None:
    async with suite(executors=[], tokenizers=[], postprocessors=[]) as running:
        assert len((await get(running)).problems) == 3
        with pytest.raises(grpc.aio.AioRpcError):
            await collect(running.router.Generate(HELLO))
