"""Two doors, one request; events back through the door that they came by."""

from __future__ import annotations

import pytest

from unit.router.views import DOWN, executor, fleet, tokenizer, unknown_executor
from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt
from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.stream_pb2 import Accepted, Continued, Delta, OutputFinished, Receipt
from weir.router.v1.fleet_pb2 import AliasTarget
from weir.router.v1.router_pb2 import ChatRequest, ChatResponse, GenerateRequest, GenerateResponse, TokenPrompt
from weir_router import mapping
from weir_router.delivery import Event
from weir_router.models.aliases import TargetView
from weir_router.models.target import Target
from weir_router.regions import NO_CLIENT
from weir_router.request import Caller, TextPrompt, TokenIdsPrompt

ANYONE = Caller(NO_CLIENT)


def test_what_is_unset_is_completed_and_the_message_left_alone() -> None:
    message = GenerateRequest(text="hi", sampling=SamplingParameters(top_k=3))
    request = mapping.from_generate(message, "r", 5, ANYONE)
    assert request.sampling == SamplingParameters(top_k=3, seed=5, n=1)
    assert message.sampling == SamplingParameters(top_k=3)
    assert request.prompt == TextPrompt("hi", add_special_tokens=None)
    assert request.skip_special_tokens is None


def test_what_is_set_stays() -> None:
    message = GenerateRequest(
        model="m",
        token_ids=TokenPrompt(token_ids=[1, 2]),
        sampling=SamplingParameters(seed=0, n=4),
        stopping=StoppingConditions(max_tokens=3),
        priority=-7,
        skip_special_tokens=False,
    )
    request = mapping.from_generate(message, "r", 5, ANYONE)
    assert (request.sampling.seed, request.n, request.priority, request.model) == (0, 4, -7, "m")
    assert request.prompt == TokenIdsPrompt([1, 2])
    assert request.stopping.max_tokens == 3
    assert request.skip_special_tokens is False


def test_special_tokens_around_a_text_are_the_clients_choice() -> None:
    for wanted in (True, False):
        request = mapping.from_generate(GenerateRequest(text="hi", add_special_tokens=wanted), "r", 5, ANYONE)
        assert request.prompt == TextPrompt("hi", add_special_tokens=wanted)


def test_a_chat_is_its_messages() -> None:
    prompt = ChatPrompt(messages=[ChatMessage(role="user")])
    assert mapping.from_chat(ChatRequest(prompt=prompt), "r", 5, ANYONE).prompt == prompt


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (Accepted(request_id="r"), "accepted"),
        (Delta(text="x"), "delta"),
        (Continued(attempt=2), "continued"),
        (OutputFinished(output_index=1), "finished"),
        (Usage(prompt_tokens=1), "usage"),
        (Receipt(attempts=1), "receipt"),
    ],
)
def test_each_event_has_its_field_at_both_doors(event: Event, field: str) -> None:
    for response in (mapping.response(GenerateResponse, event), mapping.response(ChatResponse, event)):
        assert response.WhichOneof("event") == field
        assert getattr(response, field) == event


def test_a_model_is_listed_per_version_with_those_that_serve_it() -> None:
    snapshot = fleet(
        executor("a"),
        executor("b", state=DOWN, max_model_len=200),
        executor("c", revision="r2"),
        unknown_executor("d"),
        tokenizers=(tokenizer(template=True),),
    )
    rows = [
        (m.model_version.revision, m.workers, m.healthy_workers, m.max_model_len, m.has_chat_template)
        for m in mapping.list_models(snapshot, {}).models
    ]
    assert rows == [("r1", 2, 1, 200, True), ("r2", 1, 1, 100, False)]


def test_an_alias_is_listed_with_what_it_comes_to_and_told_of_in_full() -> None:
    views = [
        TargetView(Target("m", "r1", "chat", "old"), "old", 1.0, 1.0, "", 7, 2),
        TargetView(Target("m", "r2", "chat", "new"), "new", 9.0, 0.0, "error rate", 3, 3),
        TargetView(Target("n", "", "chat", ""), "n", 2.0, 2.0, "", 0, 0),
    ]
    (alias,) = mapping.list_models(fleet(), {"chat": views}).aliases
    assert (alias.name, list(alias.models)) == ("chat", ["n", "m@r1"])
    told = mapping.alias("chat", views)
    assert told.targets[1] == AliasTarget(
        model="m",
        revision="r2",
        arm="new",
        weight=9.0,
        weight_now=0.0,
        reason="error rate",
        requests=3,
        failed_requests=3,
    )
