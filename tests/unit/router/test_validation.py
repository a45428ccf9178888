"""A table of what is wrong with a request; each row says which field must be named, and how."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart, ImagePart
from weir.inference.v1.guide_pb2 import Choice, Guide, JsonObject
from weir.inference.v1.routing_pb2 import Constraints, RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.speculation_pb2 import Speculation, SpeculationMode
from weir.inference.v1.watermark_pb2 import Watermark
from weir.router.v1.router_pb2 import ChatRequest, GenerateRequest, TokenPrompt
from weir_chassis.errors import InvalidArgument, Unsupported
from weir_router import validation

USER = ChatMessage(role="user", content=[ContentPart(text="hi")])


def generate(**fields: Any) -> GenerateRequest:
    return GenerateRequest(**{"text": "hi", **fields})


def chat(*messages: ChatMessage, **fields: Any) -> ChatRequest:
    return ChatRequest(prompt=ChatPrompt(messages=messages), **fields)


def sampling(**fields: Any) -> GenerateRequest:
    return generate(sampling=SamplingParameters(**fields))


def stopping(**fields: Any) -> GenerateRequest:
    return generate(stopping=StoppingConditions(**fields))


def routing(**fields: Any) -> GenerateRequest:
    return generate(routing=RoutingOptions(**fields))


def constrained(**fields: Any) -> GenerateRequest:
    return routing(constraints=Constraints(**fields))


BAD: list[tuple[GenerateRequest | ChatRequest, str, str]] = [
    (GenerateRequest(), "prompt", "is required"),
    (GenerateRequest(text=""), "text", "must not be empty"),
    (GenerateRequest(token_ids=TokenPrompt()), "token_ids.token_ids", "must not be empty"),
    (generate(model="m" * 129), "model", "0 to 128 bytes of UTF-8, has 129"),
    (generate(model="é" * 65), "model", "has 130"),
    (routing(session="s" * 129), "routing.session", "0 to 128 bytes of UTF-8, has 129"),
    (routing(idempotency_key="k" * 129), "routing.idempotency_key", "has 129"),
    (routing(continuation=9), "routing.continuation", "9 is unknown"),
    (routing(retain=Duration()), "routing.retain", "must be more than 0 s, is 0 s"),
    (routing(hedge_after=Duration(seconds=-1)), "routing.hedge_after", "must be 0 s or more, is -1 s"),
    (constrained(max_ttft=Duration(nanos=-5)), "routing.constraints.max_ttft", "must be more than 0 s"),
    (constrained(min_quality=1.5), "routing.constraints.min_quality", "must be in [0, 1], is 1.5"),
    (constrained(min_quality=math.nan), "routing.constraints.min_quality", "is nan"),
    (constrained(regions=["r"] * 17), "routing.constraints.regions", "0 to 16 entries, has 17"),
    (constrained(regions=["eu", ""]), "routing.constraints.regions[1]", "1 to 64 bytes"),
    (generate(priority=101), "priority", "must be in [-100, 100], is 101"),
    (generate(priority=-101), "priority", "is -101"),
    (sampling(temperature=math.nan), "sampling.temperature", "must be in [0, 100], is nan"),
    (sampling(temperature=-0.1), "sampling.temperature", "must be in [0, 100]"),
    (sampling(temperature=100.5), "sampling.temperature", "must be in [0, 100]"),
    (sampling(temperature=math.inf), "sampling.temperature", "is inf"),
    (sampling(top_p=0.0), "sampling.top_p", "must be in (0, 1], is 0"),
    (sampling(top_p=1.1), "sampling.top_p", "must be in (0, 1]"),
    (sampling(top_p=math.nan), "sampling.top_p", "must be in (0, 1]"),
    (sampling(min_p=-0.5), "sampling.min_p", "must be in [0, 1]"),
    (sampling(min_p=1.5), "sampling.min_p", "must be in [0, 1]"),
    (sampling(repetition_penalty=0.0), "sampling.repetition_penalty", "must be in (0, 100]"),
    (sampling(repetition_penalty=101.0), "sampling.repetition_penalty", "must be in (0, 100]"),
    (sampling(presence_penalty=-101.0), "sampling.presence_penalty", "must be in [-100, 100]"),
    (sampling(frequency_penalty=math.nan), "sampling.frequency_penalty", "must be in [-100, 100]"),
    (sampling(n=0), "sampling.n", "must be in [1, 16], is 0"),
    (sampling(n=17), "sampling.n", "must be in [1, 16], is 17"),
    (sampling(logprobs=21), "sampling.logprobs", "must be in [0, 20], is 21"),
    (sampling(logit_bias={7: 100.5}), "sampling.logit_bias[7]", "must be in [-100, 100]"),
    (sampling(logit_bias={7: math.nan}), "sampling.logit_bias[7]", "must be in [-100, 100]"),
    (sampling(logit_bias=dict.fromkeys(range(1025), 0.0)), "sampling.logit_bias", "0 to 1024 entries, has 1025"),
    (sampling(guide=Guide()), "sampling.guide", "names no language"),
    (sampling(guide=Guide(regex="")), "sampling.guide.regex", "1 to 8192 bytes of UTF-8, has 0"),
    (sampling(guide=Guide(regex="x" * 8193)), "sampling.guide.regex", "has 8193"),
    (sampling(guide=Guide(json_schema="é" * 32769)), "sampling.guide.json_schema", "1 to 65536 bytes"),
    (sampling(guide=Guide(ebnf="x" * 65537)), "sampling.guide.ebnf", "1 to 65536 bytes"),
    (sampling(guide=Guide(structural_tag="x" * 65537)), "sampling.guide.structural_tag", "1 to 65536 bytes"),
    (sampling(guide=Guide(choice=Choice())), "sampling.guide.choice.options", "1 to 256 entries, has 0"),
    (sampling(guide=Guide(choice=Choice(options=["x"] * 257))), "sampling.guide.choice.options", "has 257"),
    (sampling(guide=Guide(choice=Choice(options=["x", ""]))), "sampling.guide.choice.options[1]", "has 0"),
    (sampling(watermark=Watermark(green_fraction=0.96)), "sampling.watermark.green_fraction", "[0.05, 0.95]"),
    (sampling(watermark=Watermark(green_fraction=math.nan)), "sampling.watermark.green_fraction", "is nan"),
    (sampling(speculation=Speculation(mode=9)), "sampling.speculation.mode", "9 is unknown"),  # type: ignore[arg-type]
    (sampling(speculation=Speculation(max_draft_tokens=17)), "sampling.speculation.max_draft_tokens", "[1, 16]"),
    (sampling(watermark=Watermark(bias=0.0)), "sampling.watermark.bias", "must be in (0, 20], is 0"),
    (sampling(watermark=Watermark(bias=20.5)), "sampling.watermark.bias", "must be in (0, 20]"),
    (stopping(max_tokens=0), "stopping.max_tokens", "must be at least 1"),
    (stopping(max_tokens=4, min_tokens=5), "stopping.min_tokens", "must be at most max_tokens (4), is 5"),
    (stopping(stop=["x"] * 17), "stopping.stop", "0 to 16 entries, has 17"),
    (stopping(stop=["x", ""]), "stopping.stop[1]", "1 to 1024 bytes of UTF-8, has 0"),
    (stopping(stop=["é" * 513]), "stopping.stop[0]", "has 1026"),
    (stopping(stop_token_ids=[1] * 65), "stopping.stop_token_ids", "0 to 64 entries, has 65"),
    (chat(), "prompt.messages", "1 to 4096 entries, has 0"),
    (chat(*[USER] * 4097), "prompt.messages", "has 4097"),
    (chat(USER, ChatMessage()), "prompt.messages[1].role", "1 to 64 bytes of UTF-8, has 0"),
    (chat(ChatMessage(role="r" * 65)), "prompt.messages[0].role", "has 65"),
    (chat(ChatMessage(role="user", content=[ContentPart()] * 1025)), "prompt.messages[0].content", "has 1025"),
    (chat(ChatMessage(role="user", content=[ContentPart()])), "prompt.messages[0].content[0]", "is required"),
    (chat(USER, priority=1000), "priority", "must be in [-100, 100]"),
    (chat(USER, sampling=SamplingParameters(n=99)), "sampling.n", "must be in [1, 16], is 99"),
]


def check(request: GenerateRequest | ChatRequest) -> None:
    if isinstance(request, ChatRequest):
        validation.check_chat(request)
    else:
        validation.check_generate(request)


@pytest.mark.parametrize(("request_", "field", "says"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_requests_name_the_field_and_the_limit(
    request_: GenerateRequest | ChatRequest, field: str, says: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check(request_)
    assert caught.value.field == field
    assert says in caught.value.description


def test_an_image_is_unsupported_and_says_where() -> None:
    image = ContentPart(image=ImagePart(url="http://example.com/cat.png"))
    with pytest.raises(Unsupported, match=r"prompt\.messages\[1\]\.content\[1\]\.image"):
        check(chat(USER, ChatMessage(role="user", content=[ContentPart(text="what is this?"), image])))


GOOD = [
    generate(),
    generate(text="x", priority=-100),
    GenerateRequest(token_ids=TokenPrompt(token_ids=[0])),
    sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=100.0, n=16, logprobs=20, seed=0),
    sampling(presence_penalty=-100.0, frequency_penalty=100.0, logit_bias={0: -100.0, 5: 100.0}),
    stopping(max_tokens=1, min_tokens=1, stop=["x" * 1024] * 16, stop_token_ids=[1] * 64, ignore_eos=True),
    sampling(guide=Guide(json_object=JsonObject())),
    sampling(guide=Guide(regex="x" * 8192)),
    sampling(guide=Guide(choice=Choice(options=["x" * 1024] * 256))),
    sampling(watermark=Watermark()),
    routing(session="s" * 128, hedge_after=Duration(), retain=Duration(seconds=1)),
    constrained(max_ttft=Duration(nanos=1), max_cost_micros=0, min_quality=1.0, regions=["r" * 64] * 16),
    sampling(speculation=Speculation(mode=SpeculationMode.SPECULATION_MODE_DRAFT_MODEL, max_draft_tokens=16)),
    sampling(watermark=Watermark(green_fraction=0.5, bias=20.0)),
    stopping(min_tokens=7),
    chat(USER),
    chat(ChatMessage(role="assistant")),
]


@pytest.mark.parametrize("request_", GOOD)
def test_the_limits_themselves_are_allowed(request_: GenerateRequest | ChatRequest) -> None:
    check(request_)


def test_a_token_outside_the_vocabulary_is_named() -> None:
    validation.check_vocabulary([0, 256], 257)
    with pytest.raises(InvalidArgument) as caught:
        validation.check_vocabulary([0, 256, 257, 300], 257)
    assert caught.value.field == "token_ids.token_ids[2]"
    assert caught.value.description == "must be below the vocabulary's size 257, is 257"


@given(st.floats(width=32))
def test_exactly_the_temperatures_of_the_range_are_allowed(temperature: float) -> None:
    try:
        check(sampling(temperature=temperature))
    except InvalidArgument:
        assert not 0 <= temperature <= 100
    else:
        assert 0 <= temperature <= 100
