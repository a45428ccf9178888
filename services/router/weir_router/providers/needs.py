"""What a request needs of whoever takes it whole, text to text. Pure.

An executor of ours can do all of it. An OpenAI-compatible endpoint says what it can (`config.Capability`), and a
request that needs more never goes there: nothing that a client has asked for is left out in silence. Names without an
entry there are needs that no such endpoint meets. Speculation is no need, since it changes no token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from weir.inference.v1.chat_pb2 import ChatPrompt
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_router.request import ClientRequest, TextPrompt, TokenIdsPrompt

# As many stop strings as the protocol itself allows.
_USUAL_STOPS: Final = 4
_BIASES: Final = ("top_k", "min_p", "repetition_penalty")


def needs(request: ClientRequest) -> frozenset[str]:
    return frozenset(
        (
            *_of_prompt(request),
            *_of_sampling(request.sampling),
            *_of_stopping(request.stopping),
            *(["seed"] if request.seeded else []),
            *(["adapter"] if request.adapter else []),
            *(["special_tokens"] if request.skip_special_tokens is False else []),
        )
    )


def _of_prompt(request: ClientRequest) -> Iterator[str]:
    prompt = request.prompt
    if isinstance(prompt, TokenIdsPrompt):
        yield "token_ids"
    elif isinstance(prompt, TextPrompt):
        yield "completions"
        if prompt.add_special_tokens is False:
            yield "special_tokens"
    else:
        yield "chat"
        yield from _of_chat(prompt)


def _of_chat(prompt: ChatPrompt) -> Iterator[str]:
    if prompt.tools or any(message.tool_calls or message.role == "tool" for message in prompt.messages):
        yield "tools"
    if prompt.documents:
        yield "documents"
    opened = prompt.HasField("add_generation_prompt") and not prompt.add_generation_prompt
    if opened or prompt.continue_final_message or prompt.HasField("template_variables_json"):
        yield "template"


def _of_sampling(sampling: SamplingParameters) -> Iterator[str]:
    for name in _BIASES:
        if sampling.HasField(name):
            yield name
    if sampling.logit_bias:
        yield "logit_bias"
    if sampling.n > 1:
        yield "n"
    if sampling.HasField("logprobs"):
        yield "logprobs"
    if sampling.HasField("guide"):
        yield sampling.guide.WhichOneof("language") or "guide"
    if sampling.HasField("watermark"):
        yield "watermark"


def _of_stopping(stopping: StoppingConditions) -> Iterator[str]:
    if stopping.min_tokens:
        yield "min_tokens"
    if stopping.stop_token_ids:
        yield "stop_token_ids"
    if stopping.ignore_eos:
        yield "ignore_eos"
    if stopping.include_stop_in_output:
        yield "include_stop_in_output"
    if len(stopping.stop) > _USUAL_STOPS:
        yield "many_stops"
