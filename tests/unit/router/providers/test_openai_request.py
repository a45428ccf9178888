"""Requests in the API's words, checked against the official client's own types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsStreaming as CompletionParams
from pydantic import TypeAdapter

from unit.router.providers.making import chat, request
from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart, Tool, ToolCall
from weir.inference.v1.guide_pb2 import Guide, JsonObject
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_router.providers.openai_request import request_body, request_path
from weir_router.request import ClientRequest, TextPrompt


def body_of(wanted: ClientRequest, **options: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"max_tokens_field": "max_tokens", "capabilities": frozenset({"seed"}), **options}
    body = request_body(wanted, "theirs", **values)
    params: Any = ChatParams if "messages" in body else CompletionParams
    TypeAdapter(params).validate_python(json.loads(json.dumps(body)))
    return body


def test_a_chat_with_all_that_the_api_knows() -> None:
    prompt = ChatPrompt(
        messages=[
            ChatMessage(role="system", content=[ContentPart(text="be"), ContentPart(text="brief")]),
            ChatMessage(role="user", content=[ContentPart(text="hi")], name="ann"),
            ChatMessage(role="assistant", tool_calls=[ToolCall(id="c", name="look", arguments_json="{}")]),
            ChatMessage(role="tool", content=[ContentPart(text="seen")], tool_call_id="c"),
        ],
        tools=[Tool(name="look", description="looks", parameters_json='{"type": "object"}')],
    )
    sampling = SamplingParameters(
        temperature=0.5, top_p=0.25, presence_penalty=1, frequency_penalty=-1, n=2, logprobs=3, logit_bias={7: -100}
    )
    sampling.guide.json_schema = '{"type": "string"}'
    wanted = request(prompt, sampling=sampling, stopping=StoppingConditions(max_tokens=9, stop=["x"]))
    assert request_path(wanted) == "/chat/completions"
    assert body_of(wanted) == {
        "model": "theirs",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]},
            {"role": "user", "content": "hi", "name": "ann"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "seen", "tool_call_id": "c"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "look", "description": "looks", "parameters": {"type": "object"}}}
        ],
        "temperature": 0.5,
        "top_p": 0.25,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "n": 2,
        "logit_bias": {"7": -100.0},
        "logprobs": True,
        "top_logprobs": 3,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "string"}, "strict": True},
        },
        "max_tokens": 9,
        "stop": ["x"],
        "seed": 5,
    }


def test_a_completion_says_no_more_than_was_asked() -> None:
    wanted = request(TextPrompt("hi", None))
    assert request_path(wanted) == "/completions"
    assert body_of(wanted, capabilities=frozenset()) == {
        "model": "theirs",
        "stream": True,
        "stream_options": {"include_usage": True},
        "prompt": "hi",
    }


def test_what_open_servers_add() -> None:
    stopping = StoppingConditions(
        max_tokens=3, min_tokens=2, stop_token_ids=[1], ignore_eos=True, include_stop_in_output=True
    )
    body = body_of(
        request(sampling=SamplingParameters(top_k=3, min_p=0.5, repetition_penalty=2, logprobs=0), stopping=stopping),
        max_tokens_field="max_completion_tokens",
    )
    added = {
        "top_k": 3,
        "min_p": 0.5,
        "repetition_penalty": 2.0,
        "logprobs": 0,
        "max_completion_tokens": 3,
        "min_tokens": 2,
        "stop_token_ids": [1],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
    }
    assert body.items() >= added.items()


@pytest.mark.parametrize("seed", [0, 1 << 63, (1 << 64) - 1])
def test_a_seed_fits_the_apis_signed_number(seed: int) -> None:
    assert 0 <= body_of(request(sampling=SamplingParameters(seed=seed)))["seed"] < 1 << 63


def test_json_without_a_schema() -> None:
    sampling = SamplingParameters(guide=Guide(json_object=JsonObject()), logprobs=0)
    body = body_of(request(chat("hi"), sampling=sampling))
    assert body["response_format"] == {"type": "json_object"}
    assert body["logprobs"] is True
    assert "top_logprobs" not in body
