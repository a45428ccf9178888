from __future__ import annotations

from typing import get_args

import pytest

from unit.router.providers.making import chat, request
from weir.inference.v1.chat_pb2 import ChatMessage, Document, Tool
from weir.inference.v1.guide_pb2 import Choice, Guide
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.speculation_pb2 import Speculation
from weir.inference.v1.watermark_pb2 import Watermark
from weir_router.providers.config import Capability
from weir_router.providers.needs import needs
from weir_router.request import ClientRequest, TextPrompt, TokenIdsPrompt

CAPABILITIES = frozenset(get_args(Capability))
FULL = StoppingConditions(max_tokens=9, min_tokens=1, stop=list("abcde"), stop_token_ids=[1], ignore_eos=True)
PLAIN = SamplingParameters(temperature=0.1, top_p=0.1, presence_penalty=1, speculation=Speculation())
BIASED = SamplingParameters(top_k=1, min_p=0.1, repetition_penalty=1.5, logit_bias={1: 1}, n=2, logprobs=0)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (request(chat("hi"), sampling=PLAIN, stopping=StoppingConditions(max_tokens=1, stop=list("abcd"))), {"chat"}),
        (request(TextPrompt("hi", None)), {"completions"}),
        (request(TextPrompt("hi", True)), {"completions"}),
        (request(seeded=True), {"completions", "seed"}),
        (request(chat("hi", tools=[Tool(name="t")])), {"chat", "tools"}),
        (
            request(sampling=BIASED),
            {"completions", "top_k", "min_p", "repetition_penalty", "logit_bias", "n", "logprobs"},
        ),
        (request(stopping=FULL), {"completions", "min_tokens", "many_stops", "stop_token_ids", "ignore_eos"}),
        (request(sampling=SamplingParameters(guide=Guide(json_schema="{}"))), {"completions", "json_schema"}),
    ],
)
def test_what_an_endpoint_may_declare_that_it_can(wanted: ClientRequest, expected: set[str]) -> None:
    assert needs(wanted) == expected
    assert expected <= CAPABILITIES


@pytest.mark.parametrize(
    "wanted",
    [
        request(TokenIdsPrompt([1])),
        request(TextPrompt("hi", False)),
        request(adapter="law"),
        request(skip_special_tokens=False),
        request(chat("hi", documents=[Document(text="d")])),
        request(chat("hi", continue_final_message=True)),
        request(chat("hi", add_generation_prompt=False)),
        request(chat("hi", template_variables_json="{}")),
        request(sampling=SamplingParameters(guide=Guide(regex="a"))),
        request(sampling=SamplingParameters(guide=Guide(choice=Choice(options=["a"])))),
        request(sampling=SamplingParameters(watermark=Watermark())),
    ],
)
def test_what_no_endpoint_can_declare(wanted: ClientRequest) -> None:
    assert needs(wanted) - CAPABILITIES


def test_answers_of_tools_need_them_too() -> None:
    prompt = chat("hi")
    prompt.messages.append(ChatMessage(role="tool", tool_call_id="c"))
    assert "tools" in needs(request(prompt))
