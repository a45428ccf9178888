"""The contract's messages → the domain's values, checked. Every refusal names the field and its limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from weir.inference.v1 import chat_pb2, model_pb2
from weir.tokenizer.v1 import tokenizer_pb2
from weir_chassis.errors import InvalidArgument, Unsupported
from weir_tokenizer.chat_template import Chat
from weir_tokenizer.content_format import ContentFormat
from weir_tokenizer.model import ModelIdentity, TextModel

# The limits that the contract states.
_MAX_BATCH = 256
_MAX_MESSAGES = 4096
_MAX_PARTS = 1024
_MAX_ROLE_BYTES = 64
_MAX_SALT_BYTES = 128
_MAX_BLOCK_TOKENS = 1024
_MAX_ADAPTER_BYTES = 128

# What `Chat` itself passes to templates; a variable of this name would change the meaning of another field.
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")


def check_texts(request: tokenizer_pb2.TokenizeRequest, max_bytes: int) -> None:
    """1 to 256 texts, none empty, together at most `max_bytes` of UTF-8. Raises InvalidArgument.

    An empty text is refused even where special tokens would make a prompt of it: such a prompt says nothing, and
    comes from a mistake.
    """
    _check_count("texts", len(request.texts), 1, _MAX_BATCH)
    for index, text in enumerate(request.texts):
        if not text:
            raise InvalidArgument(f"texts[{index}]", "empty; a text has at least 1 byte")
    # The message is at least as large as its texts, and knows its own size already.
    if request.ByteSize() > max_bytes:
        _check_bytes("texts", sum(len(text.encode()) for text in request.texts), max_bytes)


def check_sequences(request: tokenizer_pb2.DetokenizeRequest, vocab_size: int, max_ids: int) -> None:
    """1 to 256 lists, together at most `max_ids` ids, each below `vocab_size`. Raises InvalidArgument."""
    _check_count("sequences", len(request.sequences), 1, _MAX_BATCH)
    total = sum(len(sequence.token_ids) for sequence in request.sequences)
    if total > max_ids:
        raise InvalidArgument("sequences", f"{total} token ids together, the limit is {max_ids}")
    for index, sequence in enumerate(request.sequences):
        if max(sequence.token_ids, default=0) >= vocab_size:
            position, wrong = next((i, id_) for i, id_ in enumerate(sequence.token_ids) if id_ >= vocab_size)
            raise InvalidArgument(
                f"sequences[{index}].token_ids[{position}]", f"{wrong} is not below the vocabulary's size, {vocab_size}"
            )


def check_scope(scope: tokenizer_pb2.HashScope) -> None:
    """Raises InvalidArgument."""
    _check_bytes("hash_scope.adapter", len(scope.adapter.encode()), _MAX_ADAPTER_BYTES)
    _check_bytes("hash_scope.tenant_salt", len(scope.tenant_salt.encode()), _MAX_SALT_BYTES)
    if scope.block_size > _MAX_BLOCK_TOKENS:
        raise InvalidArgument("hash_scope.block_size", f"{scope.block_size} tokens, the limit is {_MAX_BLOCK_TOKENS}")


def check_prompt(prompt: chat_pb2.ChatPrompt, max_bytes: int) -> None:
    """What can be told without parsing: counts, sizes, roles, kinds of parts. Raises InvalidArgument, Unsupported."""
    _check_count("prompt.messages", len(prompt.messages), 1, _MAX_MESSAGES)
    for index, message in enumerate(prompt.messages):
        _check_message(f"prompt.messages[{index}]", message)
    _check_bytes("prompt", prompt.ByteSize(), max_bytes)
    if prompt.continue_final_message and prompt.add_generation_prompt:
        raise InvalidArgument("prompt.add_generation_prompt", "cannot be true together with continue_final_message")


def _check_message(field: str, message: chat_pb2.ChatMessage) -> None:
    if not 1 <= len(message.role.encode()) <= _MAX_ROLE_BYTES:
        raise InvalidArgument(f"{field}.role", f"{len(message.role.encode())} bytes, not 1 to {_MAX_ROLE_BYTES}")
    _check_count(f"{field}.content", len(message.content), 0, _MAX_PARTS)
    for index, part in enumerate(message.content):
        kind = part.WhichOneof("part")
        if kind == "image":
            raise Unsupported(f"{field}.content[{index}]: no model here takes images")
        if kind is None:
            raise InvalidArgument(f"{field}.content[{index}]", "has neither text nor image")


def check_answer(field: str, size: int, max_bytes: int) -> None:
    """Ids and hashes may be many times larger than their text. Raises InvalidArgument, naming what they come from."""
    if size > max_bytes:
        description = f"its ids and hashes take {size} bytes, the limit is {max_bytes}"
        raise InvalidArgument(field, description, metadata={"limit": str(max_bytes)})


def chat_of(prompt: chat_pb2.ChatPrompt, content_format: ContentFormat) -> Chat:
    """The chat as templates know it. `prompt` has passed `check_prompt`. Raises InvalidArgument for bad JSON."""
    messages = [_message(f"prompt.messages[{i}]", m, content_format) for i, m in enumerate(prompt.messages)]
    tools = [_tool(f"prompt.tools[{index}]", tool) for index, tool in enumerate(prompt.tools)]
    generation = prompt.add_generation_prompt if prompt.HasField("add_generation_prompt") else True
    return Chat(
        messages=messages,
        # None and not an empty list: templates ask `is not none`.
        tools=tools or None,
        documents=[{"title": document.title, "text": document.text} for document in prompt.documents] or None,
        add_generation_prompt=generation and not prompt.continue_final_message,
        continue_final_message=prompt.continue_final_message,
        variables=_variables(prompt),
    )


def version_of(identity: ModelIdentity) -> model_pb2.ModelVersion:
    return model_pb2.ModelVersion(
        model=identity.model, revision=identity.revision, tokenizer_hash=identity.tokenizer_hash
    )


def info_of(model: TextModel) -> tokenizer_pb2.TokenizerInfo:
    return tokenizer_pb2.TokenizerInfo(
        model_version=version_of(model.identity),
        vocab_size=model.vocab_size,
        max_prompt_tokens=model.limits.max_prompt_tokens,
        max_text_bytes=model.limits.max_text_bytes,
        has_chat_template=model.has_chat_template,
        special_tokens=model.special_tokens,
    )


def _message(field: str, message: chat_pb2.ChatMessage, content_format: ContentFormat) -> dict[str, Any]:
    """OpenAI's form. What the message does not have is absent and not None, which templates would print."""
    result: dict[str, Any] = {"role": message.role, "content": _content(message, content_format)}
    if message.HasField("name"):
        result["name"] = message.name
    if message.tool_calls:
        result["tool_calls"] = [_call(f"{field}.tool_calls[{i}]", call) for i, call in enumerate(message.tool_calls)]
    if message.HasField("tool_call_id"):
        result["tool_call_id"] = message.tool_call_id
    if message.HasField("reasoning_content"):
        # Some templates (gpt-oss) know it by the older name; transformers gives them both.
        result |= {"reasoning_content": message.reasoning_content, "thinking": message.reasoning_content}
    return result


def _content(message: chat_pb2.ChatMessage, content_format: ContentFormat) -> str | list[dict[str, str]]:
    """An empty string where there is none: many templates add it to other strings without asking."""
    if content_format is ContentFormat.PARTS:
        return [{"type": "text", "text": part.text} for part in message.content]
    # Parts are paragraphs to the clients that send several, so they must not run into one another.
    return "\n".join(part.text for part in message.content)


def _call(field: str, call: chat_pb2.ToolCall) -> dict[str, Any]:
    """Arguments as an object, because most templates write them with `tojson`, which would quote a string again."""
    arguments = _object(f"{field}.arguments_json", call.arguments_json) if call.arguments_json else {}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(field: str, tool: chat_pb2.Tool) -> dict[str, Any]:
    if not tool.name:
        raise InvalidArgument(f"{field}.name", "empty; a tool has a name")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        function["parameters"] = _object(f"{field}.parameters_json", tool.parameters_json)
    return {"type": "function", "function": function}


def _variables(prompt: chat_pb2.ChatPrompt) -> Mapping[str, Any]:
    field = "prompt.template_variables_json"
    variables = _object(field, prompt.template_variables_json) if prompt.HasField("template_variables_json") else {}
    for name in _RESERVED:
        if name in variables:
            raise InvalidArgument(field, f"{name!r} is not a variable but a field of the prompt")
    return variables


def _object(field: str, text: str) -> dict[str, Any]:
    """The JSON object, in its own order of keys. Raises InvalidArgument."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        # An escape can spell half of a surrogate pair, which has no UTF-8 and so no tokens.
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InvalidArgument(field, f"not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(field, f"not JSON that can be rendered: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise InvalidArgument(field, "not a JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_count(field: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise InvalidArgument(field, f"{count}, not {least} to {most}")


def _check_bytes(field: str, size: int, limit: int) -> None:
    if size > limit:
        raise InvalidArgument(field, f"{size} bytes, the limit is {limit}", metadata={"limit": str(limit)})
