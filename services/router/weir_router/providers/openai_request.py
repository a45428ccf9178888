"""A client's request in the words of the OpenAI API: `POST /chat/completions` or `POST /completions`, streamed. Pure.

Reference: https://platform.openai.com/docs/api-reference/chat/create and …/completions/create. Fields that the API does
not have (`top_k`, `min_tokens`, …) are named as open servers of it name them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, Tool, ToolCall
from weir.inference.v1.guide_pb2 import Guide
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_router.request import ClientRequest, TextPrompt

# Ours and theirs, where a field that is set is passed on as it is.
_SAMPLING: Final = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_k",
    "min_p",
    "repetition_penalty",
)


def request_path(request: ClientRequest) -> str:
    return "/completions" if isinstance(request.prompt, TextPrompt) else "/chat/completions"


def request_body(
    request: ClientRequest, model: str, *, max_tokens_field: str, capabilities: frozenset[str]
) -> dict[str, Any]:
    """Of a request whose `needs` the endpoint meets. `model` is the provider's own name."""
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    prompt = request.prompt
    if isinstance(prompt, TextPrompt):
        body["prompt"] = prompt.text
    else:
        assert isinstance(prompt, ChatPrompt), "token ids mean nothing to a provider"
        body["messages"] = [_message(message) for message in prompt.messages]
        if prompt.tools:
            body["tools"] = [_tool(tool) for tool in prompt.tools]
    body |= _sampling(request.sampling, chat="messages" in body)
    body |= _stopping(request.stopping, max_tokens_field)
    if "seed" in capabilities:
        # In the API a signed number of 64 bits.
        body["seed"] = request.sampling.seed & ((1 << 63) - 1)
    return body


def _sampling(sampling: SamplingParameters, *, chat: bool) -> Mapping[str, Any]:
    fields: dict[str, Any] = {name: getattr(sampling, name) for name in _SAMPLING if sampling.HasField(name)}
    if sampling.n > 1:
        fields["n"] = sampling.n
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias.items()}
    if sampling.HasField("logprobs"):
        fields |= _logprobs(sampling.logprobs, chat=chat)
    if sampling.HasField("guide"):
        fields["response_format"] = _response_format(sampling.guide)
    return fields


def _logprobs(count: int, *, chat: bool) -> Mapping[str, Any]:
    """Two spellings of one thing. A chat that wants none but the drawn token's leaves `top_logprobs` out."""
    if not chat:
        return {"logprobs": count}
    return {"logprobs": True, "top_logprobs": count} if count else {"logprobs": True}


def _response_format(guide: Guide) -> Mapping[str, Any]:
    if guide.WhichOneof("language") == "json_object":
        return {"type": "json_object"}
    schema = {"name": "answer", "schema": json.loads(guide.json_schema), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _stopping(stopping: StoppingConditions, max_tokens_field: str) -> Mapping[str, Any]:
    fields: dict[str, Any] = {}
    if stopping.HasField("max_tokens"):
        fields[max_tokens_field] = stopping.max_tokens
    if stopping.stop:
        fields["stop"] = list(stopping.stop)
    if stopping.min_tokens:
        fields["min_tokens"] = stopping.min_tokens
    if stopping.stop_token_ids:
        fields["stop_token_ids"] = list(stopping.stop_token_ids)
    if stopping.ignore_eos:
        fields["ignore_eos"] = True
    if stopping.include_stop_in_output:
        fields["include_stop_str_in_output"] = True
    return fields


def _message(message: ChatMessage) -> Mapping[str, Any]:
    """What an assistant thought before it answered is left out: the API does not take it back."""
    texts = [part.text for part in message.content]
    fields: dict[str, Any] = {"role": message.role}
    # One text as a string, which every server takes.
    fields["content"] = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
    if not texts:
        fields["content"] = None if message.tool_calls else ""
    if message.HasField("name"):
        fields["name"] = message.name
    if message.tool_calls:
        fields["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.HasField("tool_call_id"):
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _tool_call(call: ToolCall) -> Mapping[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}


def _tool(tool: Tool) -> Mapping[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        function["parameters"] = json.loads(tool.parameters_json)
    return {"type": "function", "function": function}
