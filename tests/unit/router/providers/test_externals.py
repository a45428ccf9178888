"""A whole router with workers outside the suite beside its own: the same fleet, policies, faults and receipt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from contract.router_contract import Answer, collect, refusal
from fakes.executor import FakeExecutor
from fakes.openai_server import KEY, MODEL, OpenAIServer, openai_server
from fakes.suite import Suite, suite
from unit.router.providers.making import chat
from weir.fleet.v1.instance_pb2 import InstanceKind
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1 import fleet_pb2
from weir.router.v1 import router_pb2 as pb
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir_chassis.errors import WorkerLost
from weir_chassis.status import from_rpc_error
from weir_router.fleet.views import WorkerState

# The fakes' model is "bytes".
PROVIDER = """
[[providers]]
name = "p"
base_url = "{url}"
api_key_file = "{key}"
models = {{ bytes = "example-large", outside = "example-large" }}
capabilities = ["chat", "completions", "n", "logprobs", "seed"]
region = "us"
price = {{ prompt_micros = 1_000_000, cached_prompt_micros = 500_000, completion_micros = 2_000_000, currency = "EUR" }}
probe_seconds = 0.05
"""
# An executor without a price is dearer than anybody who has one.
CHEAPEST = '\n[defaults]\npolicy = "cheapest"\n'
OUTSIDE = ModelVersion(model="outside", revision=MODEL)


@asynccontextmanager
async def beside(
    tmp_path: Path, more: str = "", executors: list[FakeExecutor] | None = None, rules: str = ""
) -> AsyncIterator[tuple[Suite, OpenAIServer]]:
    """A suite and a provider that the router has found. `more`: lines of its table; `rules`: other tables."""
    key, config = tmp_path / "key", tmp_path / "routing.toml"
    key.write_text(KEY)
    async with openai_server() as server:
        table = PROVIDER.format(url=server.url, key=key)
        config.write_text(table.replace("probe_seconds", f"{more}\nprobe_seconds") + rules)
        async with suite(executors=executors, config_file=config, config_poll_seconds=0.02) as running:
            await running.until(lambda: external(running) is WorkerState.SERVING)
            yield running, server
            await running.until(lambda: not any(w.routed_requests for w in running.fleet.snapshot().externals))
            await running.until(lambda: not server.live)


def external(running: Suite) -> WorkerState:
    (worker,) = running.fleet.snapshot().externals
    return worker.state


def text(prompt: str = "one two three", model: str = "outside", **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(model=model, text=prompt, **fields)


async def ask(running: Suite, request: pb.GenerateRequest) -> Answer:
    return await collect(running.router.Generate(request))


# A model that nobody here serves.


async def test_a_text_and_a_chat_are_answered_without_a_worker_of_the_suite(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, _):
        answer = await ask(running, text())
        assert answer.texts == {0: "one two three"}
        assert answer.kinds[0] == "accepted"
        assert answer.kinds[-2:] == ["usage", "receipt"]
        assert answer.accepted.model_version == answer.receipt.model_version == OUTSIDE
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)
        receipt = answer.receipt
        assert (receipt.worker, list(receipt.workers), receipt.region) == ("provider:p", ["provider:p"], "us")
        assert (receipt.attempts, receipt.policy) == (1, "least_outstanding_tokens")
        assert [score.worker for score in receipt.scores] == ["provider:p"]
        said = await collect(running.router.Chat(pb.ChatRequest(model="outside", prompt=chat("four five"))))
        assert said.texts == {0: "four five"}
        assert [running.executor.submits, running.fakes.tokenizers[0].calls, running.postprocess.opens] == [[], 0, []]


async def test_what_was_cached_there_costs_less(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, server):
        server.cached_tokens = 2
        receipt = (await ask(running, text())).receipt
        assert (receipt.cost_micros, receipt.currency) == (1 + 2 * 0.5 + 3 * 2, "EUR")
        server.counts_tokens = False
        answer = await ask(running, text())
        assert answer.usage.estimated
        assert not answer.receipt.HasField("cost_micros")


async def test_outputs_logprobs_and_limits_are_the_clients(tmp_path: Path) -> None:
    wanted = text(
        sampling=SamplingParameters(n=2, logprobs=1, seed=7), stopping=StoppingConditions(max_tokens=2, stop=["x"])
    )
    async with beside(tmp_path) as (running, server):
        answer = await ask(running, wanted)
        assert answer.texts == {0: "one two", 1: "one1 two1"}
        assert [len(entries) for entries in answer.logprobs.values()] == [2, 2]
        assert set(answer.finished) == {0, 1}
        assert server.requests[0].items() >= {"n": 2, "seed": 7, "max_tokens": 2, "stop": ["x"]}.items()


async def test_what_it_cannot_do_never_goes_there(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, server):
        for request in (
            pb.GenerateRequest(model="outside", token_ids=pb.TokenPrompt(token_ids=[1])),
            text(sampling=SamplingParameters(top_k=3)),
        ):
            assert (await refusal(running.router.Generate(request)))[0] == "NO_WORKER"
        ids = pb.GenerateRequest(model="bytes", token_ids=pb.TokenPrompt(token_ids=[1, 2]))
        for _ in range(4):
            assert (await ask(running, ids)).receipt.worker == "memory:executor-0"
        assert not server.requests


async def test_it_is_listed_and_its_health_is_told(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, server):
        models = (await running.router.ListModels(pb.ListModelsRequest())).models
        listed = {(m.model_version.model, m.model_version.revision): m.healthy_workers for m in models}
        assert listed == {("bytes", "r1"): 1, ("bytes", MODEL): 1, ("outside", MODEL): 1}
        server.models_status = 500
        await running.until(lambda: external(running) is WorkerState.DOWN)
        assert (await refusal(running.router.Generate(text())))[0] == "NO_WORKER"


async def test_operators_see_it(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, server):
        stub = FleetServiceStub(running.channel)
        fleet = await stub.GetFleet(fleet_pb2.GetFleetRequest())
        (worker,) = [one for one in fleet.workers if one.source == "configured"]
        assert worker.instance.kind == InstanceKind.INSTANCE_KIND_PROVIDER
        assert (worker.instance.address, worker.instance.region) == ("provider:p", "us")
        assert worker.state == fleet_pb2.WORKER_STATE_SERVING
        assert worker.instance.price.completion_micros == 2_000_000
        assert {version.model for version in worker.instance.model_versions} == {"bytes", "outside"}
        asked = fleet_pb2.ExplainRouteRequest(generate=text())
        assert (await stub.ExplainRoute(asked)).executor == "provider:p"
        assert not server.requests


async def test_its_retained_stream_is_resumed_from_the_beginning(tmp_path: Path) -> None:
    """No token of it was told, so that no client can say which of them it has."""
    kept = text(routing=RoutingOptions(retain=Duration(seconds=30)))
    async with beside(tmp_path) as (running, server):
        call, part = running.router.Generate(kept), Answer()
        server.hang_after = 2
        task = asyncio.create_task(collect(call, part))
        await running.until(lambda: "delta" in part.kinds)
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)
        name = pb.ResumeRequest(request_id=part.accepted.request_id)
        again = Answer()
        resumed = running.router.Resume(name)
        reader = asyncio.create_task(collect(resumed, again))
        await running.until(lambda: again.texts.get(0) == "one two")
        await running.router.CancelRequest(pb.CancelRequestRequest(request_id=part.accepted.request_id))
        await asyncio.gather(reader, return_exceptions=True)
        server.hang_after = None
        whole = await collect(running.router.Generate(kept))
        again = await collect(running.router.Resume(pb.ResumeRequest(request_id=whole.accepted.request_id)))
        assert (again.texts, again.usage) == (whole.texts, whole.usage)


async def test_a_client_that_leaves_closes_the_providers_stream(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, server):
        server.hang_after = 2
        call, answer = running.router.Generate(text()), Answer()
        task = asyncio.create_task(collect(call, answer))
        await running.until(lambda: "delta" in answer.kinds)
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await running.until(lambda: not server.live)


async def test_a_deadline_closes_it_too(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, server):
        server.running.clear()
        reason, _, _ = await refusal(running.router.Generate(text(), timeout=0.2))
        assert reason == "DEADLINE_EXCEEDED"
        server.running.set()


# Failures.


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        ((400, {}, {"error": {"param": "messages"}}), "INVALID_ARGUMENT"),
        ((500, {}, ""), "WORKER_LOST"),
        ((429, {"Retry-After": "9"}, ""), "OVERLOADED"),
    ],
)
async def test_a_refusal_is_typed(tmp_path: Path, refused: tuple[int, dict[str, str], Any], reason: str) -> None:
    async with beside(tmp_path) as (running, server):
        server.refusal = refused
        told, _, error = await refusal(running.router.Generate(text()))
        assert told == reason
        if reason == "OVERLOADED":
            assert error.retry_after is not None
            # It rests, and nobody asks it meanwhile.
            told, _, error = await refusal(running.router.Generate(text()))
            assert told == "OVERLOADED"
            assert len(server.requests) == 1
            assert error.retry_after is not None
            assert 5 < error.retry_after.total_seconds() <= 9


async def test_after_its_first_words_nobody_goes_on_for_it(tmp_path: Path) -> None:
    async with beside(tmp_path, rules=CHEAPEST) as (running, server):
        server.cut_after = 2
        answer = Answer()
        with pytest.raises(grpc.RpcError) as caught:
            await collect(running.router.Generate(text(model="bytes")), answer)
        error = from_rpc_error(caught.value)
        assert isinstance(error, WorkerLost)
        assert error.metadata["worker"] == "provider:p"
        assert answer.texts == {0: "one two"}
        assert not running.executor.submits


async def test_its_limit_of_requests_is_kept(tmp_path: Path) -> None:
    async with beside(tmp_path, "max_running = 1") as (running, server):
        server.running.clear()
        first = asyncio.ensure_future(ask(running, text()))
        await running.until(lambda: len(server.requests) == 1)
        assert (await refusal(running.router.Generate(text())))[0] == "OVERLOADED"
        server.running.set()
        assert (await first).texts == {0: "one two three"}


# Beside executors.


async def test_the_policy_ranks_it_with_the_executors(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, _):
        workers = [(await ask(running, text(model="bytes"))).receipt.worker for _ in range(8)]
        assert set(workers) == {"memory:executor-0", "provider:p"}


async def test_an_overflow_is_asked_when_executors_owe_enough_or_are_not_there(tmp_path: Path) -> None:
    async with beside(tmp_path, 'use = "overflow"\noverflow_above_tokens = 100') as (running, server):
        for _ in range(4):
            assert (await ask(running, text(model="bytes"))).receipt.worker == "memory:executor-0"
        running.executor.foreign_tokens = 100
        await running.until(lambda: running.fleet.snapshot().executors[0].outstanding_tokens >= 100)
        assert (await ask(running, text(model="bytes"))).receipt.worker == "provider:p"
        running.executor.foreign_tokens = 0
        running.fakes.workers["executor-0"].drain()
        await running.until(lambda: running.num_serving() == 2)
        assert (await ask(running, text(model="bytes"))).receipt.worker == "provider:p"
        assert not server.requests[-1].get("token_ids")


@pytest.mark.parametrize("lost", ["executor-0", "tokenizer-0", "postprocess-0"])
async def test_without_any_one_kind_of_worker_it_goes_there(tmp_path: Path, lost: str) -> None:
    async with beside(tmp_path, 'use = "overflow"') as (running, _):
        running.fakes.workers[lost].drain()
        await running.until(lambda: running.num_serving() == 2)
        assert (await ask(running, text(model="bytes"))).receipt.worker == "provider:p"


async def test_an_executor_that_fails_before_its_first_token_is_replaced_by_it(tmp_path: Path) -> None:
    async with beside(tmp_path, 'use = "overflow"') as (running, _):
        running.executor.refusal = WorkerLost("lost")
        answer = await ask(running, text(model="bytes"))
        assert answer.texts == {0: "one two three"}
        assert list(answer.receipt.workers) == ["memory:executor-0", "provider:p"]
        assert answer.receipt.attempts == 2


async def test_nobody_is_asked_beside_it(tmp_path: Path) -> None:
    request = text(model="bytes", routing=RoutingOptions(hedge_after=Duration()))
    async with beside(tmp_path, rules=CHEAPEST) as (running, server):
        server.running.clear()
        asked = asyncio.ensure_future(ask(running, request))
        await running.until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.05)
        server.running.set()
        answer = await asked
        assert answer.receipt.worker == "provider:p"
        assert not running.executor.submits


async def test_it_is_replaced_by_an_executor(tmp_path: Path) -> None:
    async with beside(tmp_path, rules=CHEAPEST) as (running, server):
        server.refusal = (500, {}, "")
        answer = await ask(running, text(model="bytes"))
        answer.check_complete()
        assert answer.texts == {0: "one two three"}
        assert list(answer.receipt.workers) == ["provider:p", "memory:executor-0"]
        assert answer.receipt.model_version.revision == "r1"


async def test_a_stream_that_an_executor_began_does_not_go_on_there(tmp_path: Path) -> None:
    executor = FakeExecutor()
    executor.pause_after = 2
    async with beside(tmp_path, 'use = "overflow"', [executor], "") as (running, server):
        answer = Answer()
        request = text(model="bytes")
        task = asyncio.create_task(collect(running.router.Generate(request, timeout=30), answer))
        await running.until(lambda: "delta" in answer.kinds)
        executor.crash.crash()
        with pytest.raises(grpc.RpcError, match=r"WORKER_LOST|UNAVAILABLE"):
            await task
        assert not server.requests


async def test_a_provider_that_fails_too_often_is_left_to_its_pauses(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, server):
        server.refusal = (500, {}, "")
        for _ in range(12):
            await ask(running, text(model="bytes"))
        asked = len(server.requests)
        assert asked < 12
        (worker,) = running.fleet.snapshot().externals
        assert worker.ejected == {"bytes"}


# Its table changes.


async def test_a_provider_comes_and_goes_with_the_file(tmp_path: Path) -> None:
    async with beside(tmp_path) as (running, server):
        server.hang_after = 2
        call, answer = running.router.Generate(text()), Answer()
        task = asyncio.create_task(collect(call, answer))
        await running.until(lambda: "delta" in answer.kinds)
        config = tmp_path / "routing.toml"
        before = config.read_text()
        config.write_text("")
        await running.until(lambda: not running.fleet.snapshot().externals)
        assert server.live, "what runs there runs on"
        assert (await refusal(running.router.Generate(text())))[0] in ("MODEL_NOT_FOUND", "NO_WORKER")
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)
        config.write_text(before)
        await running.until(lambda: bool(running.fleet.snapshot().externals))
        await running.until(lambda: external(running) is WorkerState.SERVING)
        server.hang_after = None
        assert (await ask(running, text())).texts == {0: "one two three"}


# Within a budget.


def within(micros: int, model: str) -> pb.GenerateRequest:
    request = text("one two three", model=model, stopping=StoppingConditions(max_tokens=3))
    request.routing.constraints.max_cost_micros = micros
    return request


async def test_a_budget_is_kept_by_who_has_a_price_or_the_request_is_refused(tmp_path: Path) -> None:
    """Thirteen bytes are sixteen tokens at most, as guesses go; and three of the answer cost two each."""
    async with beside(tmp_path) as (running, server):
        for model in ("outside", "bytes"):
            assert (await ask(running, within(22, model))).receipt.worker == "provider:p"
        asked = len(server.requests)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(running, within(21, "outside"))
        metadata = from_rpc_error(caught.value).metadata
        assert (metadata["constraints"], metadata["nearest_cost_micros"]) == ("max_cost_micros", "22")
        assert (metadata["nearest_model"], metadata["nearest_region"]) == ("outside", "us")
        assert len(server.requests) == asked
