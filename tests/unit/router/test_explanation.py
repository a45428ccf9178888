"""What would be chosen is what is chosen; who is left out is named with the reason; and nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.router_contract import Answer, collect
from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from weir.executor.v1.executor_pb2 import EXECUTOR_ROLE_PREFILL
from weir.fleet.v1.instance_pb2 import Instance, Price
from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart
from weir.inference.v1.error_pb2 import ErrorReason
from weir.inference.v1.routing_pb2 import Constraints, RoutingOptions
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.router.v1 import fleet_pb2 as pb
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir.router.v1.router_pb2 import ChatRequest, GenerateRequest, TokenPrompt
from weir_chassis.status import from_rpc_error

POLICIES = [
    "least_outstanding_tokens",
    "power_of_two_choices",
    "consistent_hashing",
    "prefix_aware",
    "cheapest",
]


async def explain(running: Suite, generate: GenerateRequest | None = None, **fields: Any) -> pb.ExplainRouteResponse:
    request = pb.ExplainRouteRequest(generate=generate or GenerateRequest(text="hello"), **fields)
    return await FleetServiceStub(running.channel).ExplainRoute(request, timeout=5)


async def ask(running: Suite, request: GenerateRequest) -> Answer:
    answer = Answer()
    await collect(running.router.Generate(request), answer)
    answer.check_complete()
    return answer


def configured(tmp_path: Path, policy: str) -> Path:
    path = tmp_path / "routing.toml"
    path.write_text(f'[defaults]\npolicy = "{policy}"\n')
    return path


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_request_goes_where_it_was_said_to_go(policy: str, tmp_path: Path) -> None:
    """One worker is busy, so that no turn of a request decides."""
    fakes = [FakeExecutor(), FakeExecutor()]
    fakes[0].foreign_tokens = 1_000_000
    async with suite(executors=fakes, config_file=configured(tmp_path, policy)) as running:
        await running.until(lambda: bool(running.fleet.snapshot().executors[0].foreign_tokens))
        request = GenerateRequest(text="hello", routing=RoutingOptions(session="s"))
        said = await explain(running, request)
        assert not any(fake.submits for fake in fakes), "nothing is executed"
        assert not any(view.routed_tokens for view in running.fleet.snapshot().executors), "nothing is reserved"
        answer = await ask(running, request)
        assert said.executor == answer.receipt.worker == "memory:executor-1"
        assert said.policy == answer.receipt.policy == policy
        assert [score.worker for score in said.scores] == [score.worker for score in answer.receipt.scores]
        assert said.postprocessor == "memory:postprocess-0"
        assert said.tokenizer == "memory:tokenizer-0"
        assert (said.prompt_tokens, said.model_rule) == (5, "the only model there is")
        assert said.model_version == answer.receipt.model_version
        assert said.ttft.ToTimedelta().total_seconds() > 0


async def test_who_is_left_out_is_named_with_the_reason() -> None:
    fakes = [FakeExecutor(), FakeExecutor(), FakeExecutor(role=EXECUTOR_ROLE_PREFILL)]
    async with suite(executors=fakes) as running:
        fakes[1].crash.crash()
        await running.until_serving(4)
        said = await explain(running)
        assert said.executor == "memory:executor-0"
        assert {one.worker: one.reason for one in said.excluded} == {
            "memory:executor-1": "it is down",
            "memory:executor-2": "it only prefills",
        }
        assert not said.prefill_executor, "the prompt is too short for that"


async def test_regions_and_limits_are_reasons() -> None:
    fakes = [FakeExecutor(), FakeExecutor()]
    async with suite(executors=fakes, regions=["eu", "us"]) as running:
        constraints = Constraints(regions=["eu"])
        request = GenerateRequest(text="hello", model="bytes", routing=RoutingOptions(constraints=constraints))
        said = await explain(running, request)
        assert (said.executor, said.model_rule) == ("memory:executor-0", "named bytes")
        assert [(one.worker, one.reason) for one in said.excluded] == [
            ("memory:executor-1", "it is in us, and the request must stay in eu")
        ]


async def test_a_price_makes_a_cost_and_a_limit_a_reason() -> None:
    fakes = [FakeExecutor(), FakeExecutor()]
    async with suite(executors=fakes, load_interval_seconds=0.02) as running:
        running.fakes.workers["executor-0"].identity.describe(
            Instance(price=Price(prompt_micros=1_000_000, completion_micros=2_000_000))
        )
        fakes[0].crash.crash()
        await running.until_serving(3)
        fakes[0].crash.revive()
        await running.until_serving()
        constraints = Constraints(max_cost_micros=1000)
        stopping = StoppingConditions(max_tokens=10)
        request = GenerateRequest(text="hello", stopping=stopping, routing=RoutingOptions(constraints=constraints))
        said = await explain(running, request)
        assert (said.executor, said.cost_micros) == ("memory:executor-0", 5 + 20)
        assert [(one.worker, one.reason) for one in said.excluded] == [
            ("memory:executor-1", "it does not keep the request's limits")
        ]


async def test_a_prefill_worker_is_told_of() -> None:
    fakes = [FakeExecutor(), FakeExecutor(role=EXECUTOR_ROLE_PREFILL)]
    async with suite(executors=fakes, disaggregate_tokens=8) as running:
        said = await explain(running, GenerateRequest(text="a prompt of some length"))
        assert (said.executor, said.prefill_executor) == ("memory:executor-0", "memory:executor-1")


async def test_a_chat_is_explained_and_token_ids_need_no_tokenizer() -> None:
    async with suite() as running:
        prompt = ChatPrompt(messages=[ChatMessage(role="user", content=[ContentPart(text="hello")])])
        stub = FleetServiceStub(running.channel)
        chat = await stub.ExplainRoute(pb.ExplainRouteRequest(chat=ChatRequest(prompt=prompt)), timeout=5)
        assert (chat.prompt_tokens, chat.tokenizer) == (5, "memory:tokenizer-0")
        assert not (await explain(running, GenerateRequest(token_ids=TokenPrompt(token_ids=[1, 2])))).tokenizer


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.ExplainRouteRequest(), ErrorReason.ERROR_REASON_INVALID_ARGUMENT),
        (pb.ExplainRouteRequest(generate=GenerateRequest()), ErrorReason.ERROR_REASON_INVALID_ARGUMENT),
        (
            pb.ExplainRouteRequest(generate=GenerateRequest(text="x", model="no")),
            ErrorReason.ERROR_REASON_MODEL_NOT_FOUND,
        ),
        (pb.ExplainRouteRequest(generate=GenerateRequest(text="x" * 600)), ErrorReason.ERROR_REASON_PROMPT_TOO_LONG),
    ],
)
async def test_it_is_refused_as_the_request_would_be(request_: pb.ExplainRouteRequest, reason: Any) -> None:
    async with suite() as running:
        with pytest.raises(grpc.RpcError) as caught:
            await FleetServiceStub(running.channel).ExplainRoute(request_, timeout=5)
        assert from_rpc_error(caught.value).reason == reason
