from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from weir.inference.v1 import chat_pb2
from weir.tokenizer.v1 import tokenizer_pb2
from weir_chassis.errors import InvalidArgument, Unsupported
from weir_tokenizer import mapping
from weir_tokenizer.content_format import ContentFormat

LIMIT = 1000


def prompt(**fields: Any) -> chat_pb2.ChatPrompt:
    fields.setdefault("messages", [message("hi")])
    return ParseDict(fields, chat_pb2.ChatPrompt())


def message(*texts: str, role: str = "user", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": [{"text": text} for text in texts], **fields}


def chat(value: chat_pb2.ChatPrompt, content_format: ContentFormat = ContentFormat.STRING) -> Any:
    mapping.check_prompt(value, 1 << 20)
    return mapping.chat_of(value, content_format)


def tool_call(arguments: str) -> dict[str, Any]:
    return message(role="assistant", tool_calls=[{"id": "1", "name": "f", "arguments_json": arguments}])


BAD_PROMPTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no messages": ({"messages": []}, "prompt.messages", "0, not 1 to 4096"),
    "too many messages": ({"messages": [message()] * 4097}, "prompt.messages", "4097, not 1 to 4096"),
    "no role": ({"messages": [message("x", role="")]}, "prompt.messages[0].role", "0 bytes, not 1 to 64"),
    "role too long": ({"messages": [message("x"), message(role="ж" * 33)]}, "prompt.messages[1].role", "66 bytes"),
    "too many parts": ({"messages": [message(*["x"] * 1025)]}, "prompt.messages[0].content", "1025, not 0 to 1024"),
    "empty part": ({"messages": [{"role": "user", "content": [{}]}]}, "prompt.messages[0].content[0]", "neither"),
    "too large": ({"messages": [message("x" * (1 << 20))]}, "prompt", "the limit is 1048576"),
    "both ends": (
        {"continue_final_message": True, "add_generation_prompt": True},
        "prompt.add_generation_prompt",
        "continue_final_message",
    ),
    "variables not JSON": ({"template_variables_json": "{x}"}, "prompt.template_variables_json", "at character 1"),
    "variables not an object": ({"template_variables_json": "[1]"}, "prompt.template_variables_json", "object"),
    "variables empty": ({"template_variables_json": ""}, "prompt.template_variables_json", "not JSON"),
    "variables NaN": ({"template_variables_json": '{"a": NaN}'}, "prompt.template_variables_json", "JSON"),
    "variables too deep": (
        {"template_variables_json": '{"a":' + "[" * 9000 + "]" * 9000 + "}"},
        "prompt.template_variables_json",
        "RecursionError",
    ),
    "variables of a huge number": (
        {"template_variables_json": '{"a": ' + "9" * 5000 + "}"},
        "prompt.template_variables_json",
        "ValueError",
    ),
    "variables of half a surrogate": (
        {"template_variables_json": r'{"a": "\ud83d"}'},
        "prompt.template_variables_json",
        "UnicodeEncodeError",
    ),
    "variables that are fields": (
        {"template_variables_json": '{"messages": []}'},
        "prompt.template_variables_json",
        "'messages' is not a variable",
    ),
    "tool without a name": ({"tools": [{"name": "f"}, {}]}, "prompt.tools[1].name", "empty"),
    "tool with bad JSON": (
        {"tools": [{"name": "f", "parameters_json": "{'type': 1}"}]},
        "prompt.tools[0].parameters_json",
        "not JSON",
    ),
    "tool with another JSON": (
        {"tools": [{"name": "f", "parameters_json": "7"}]},
        "prompt.tools[0].parameters_json",
        "object",
    ),
    "call with bad JSON": (
        {"messages": [tool_call("{")]},
        "prompt.messages[0].tool_calls[0].arguments_json",
        "not JSON",
    ),
    "call with a string": (
        {"messages": [message("x"), tool_call('"a"')]},
        "prompt.messages[1].tool_calls[0].arguments_json",
        "object",
    ),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_a_bad_prompt_names_the_field_and_the_limit(case: str) -> None:
    fields, field, words = BAD_PROMPTS[case]
    with pytest.raises(InvalidArgument) as caught:
        chat(prompt(**fields))
    assert caught.value.field == field
    assert words in caught.value.description


def test_an_error_about_json_does_not_quote_it() -> None:
    with pytest.raises(InvalidArgument) as caught:
        chat(prompt(template_variables_json='{"secret" "value"}'))
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("image", [{"url": "https://example.com/x.png"}, {"data": "AAAA"}, {}])
def test_an_image_is_unsupported(image: dict[str, Any]) -> None:
    value = prompt(messages=[{"role": "user", "content": [{"text": "look"}, {"image": image}]}])
    with pytest.raises(Unsupported, match=r"prompt\.messages\[0\]\.content\[1\]"):
        mapping.check_prompt(value, LIMIT)


@pytest.mark.parametrize(
    ("texts", "as_string", "as_parts"),
    [
        ((), "", []),
        (("a",), "a", [{"type": "text", "text": "a"}]),
        (("a", "", "b"), "a\n\nb", [{"type": "text", "text": text} for text in ("a", "", "b")]),
    ],
)
def test_content_is_what_the_template_wants(texts: tuple[str, ...], as_string: str, as_parts: Any) -> None:
    value = prompt(messages=[message(*texts)])
    assert chat(value).messages == [{"role": "user", "content": as_string}]
    assert chat(value, ContentFormat.PARTS).messages == [{"role": "user", "content": as_parts}]


def test_a_message_has_what_was_sent_and_nothing_else() -> None:
    full = message(
        "x",
        role="assistant",
        name="weir",
        tool_call_id="7",
        reasoning_content="hm",
        tool_calls=[{"id": "1", "name": "f", "arguments_json": '{"b": 1, "a": [1.0, 2]}'}, {"id": "2", "name": "g"}],
    )
    [result] = chat(prompt(messages=[full])).messages
    assert result == {
        "role": "assistant",
        "content": "x",
        "name": "weir",
        "tool_call_id": "7",
        "reasoning_content": "hm",
        "thinking": "hm",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [1.0, 2]}}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": {}}},
        ],
    }
    # The order of keys is what templates print.
    assert list(result["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]


def test_tools_and_documents_take_openai_form() -> None:
    value = prompt(
        tools=[{"name": "f", "description": "d", "parameters_json": '{"type": "object"}'}, {"name": "g"}],
        documents=[{"title": "t", "text": "x"}],
        template_variables_json='{"enable_thinking": false}',
    )
    result = chat(value)
    assert result.tools == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "g"}},
    ]
    assert result.documents == [{"title": "t", "text": "x"}]
    assert result.variables == {"enable_thinking": False}
    assert (chat(prompt()).tools, chat(prompt()).documents, chat(prompt()).variables) == (None, None, {})


@pytest.mark.parametrize(
    ("fields", "generation"),
    [
        ({}, True),
        ({"add_generation_prompt": False}, False),
        ({"add_generation_prompt": True}, True),
        ({"continue_final_message": True}, False),
        ({"continue_final_message": True, "add_generation_prompt": False}, False),
    ],
)
def test_the_generation_prompt_is_the_default(fields: dict[str, Any], generation: bool) -> None:
    result = chat(prompt(**fields))
    assert result.add_generation_prompt is generation
    assert result.continue_final_message is fields.get("continue_final_message", False)


BAD_TEXTS: dict[str, tuple[list[str], str, str]] = {
    "none": ([], "texts", "0, not 1 to 256"),
    "too many": (["x"] * 257, "texts", "257, not 1 to 256"),
    "empty": (["x", ""], "texts[1]", "empty; a text has at least 1 byte"),
    "too large": (["x" * (LIMIT + 1)], "texts", "1001 bytes, the limit is 1000"),
    "too large together": (["ж" * 300, "x" * 401], "texts", "1001 bytes, the limit is 1000"),
    "ten MiB": (["x" * (10 << 20)], "texts", "10485760 bytes, the limit is 1000"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_texts_name_the_field_and_the_limit(case: str) -> None:
    texts, field, words = BAD_TEXTS[case]
    with pytest.raises(InvalidArgument) as caught:
        mapping.check_texts(tokenizer_pb2.TokenizeRequest(texts=texts), LIMIT)
    assert (caught.value.field, caught.value.description) == (field, words)


@pytest.mark.parametrize("texts", [["x" * LIMIT], ["x"] * 256, ["ж" * 250, "x" * 500]])
def test_texts_at_the_limit_are_taken(texts: list[str]) -> None:
    mapping.check_texts(tokenizer_pb2.TokenizeRequest(texts=texts), LIMIT)


BAD_SEQUENCES: dict[str, tuple[list[list[int]], str, str]] = {
    "none": ([], "sequences", "0, not 1 to 256"),
    "too many": ([[1]] * 257, "sequences", "257, not 1 to 256"),
    "out of the vocabulary": (
        [[1, 2], [3, 10, 11]],
        "sequences[1].token_ids[1]",
        "10 is not below the vocabulary's size, 10",
    ),
    "the largest there is": ([[2**32 - 1]], "sequences[0].token_ids[0]", "4294967295 is not"),
    "too many ids": ([[1] * 600, [1] * 401], "sequences", "1001 token ids together, the limit is 1000"),
}


@pytest.mark.parametrize("case", BAD_SEQUENCES)
def test_bad_sequences_name_the_field_and_the_limit(case: str) -> None:
    lists, field, words = BAD_SEQUENCES[case]
    request = tokenizer_pb2.DetokenizeRequest(sequences=[tokenizer_pb2.TokenIds(token_ids=ids) for ids in lists])
    with pytest.raises(InvalidArgument) as caught:
        mapping.check_sequences(request, vocab_size=10, max_ids=LIMIT)
    assert caught.value.field == field
    assert caught.value.description.startswith(words)


@pytest.mark.parametrize(
    ("scope", "field"),
    [
        ({"block_size": 1025}, "hash_scope.block_size"),
        ({"tenant_salt": "ж" * 65}, "hash_scope.tenant_salt"),
        ({"adapter": "x" * 129}, "hash_scope.adapter"),
    ],
)
def test_a_bad_scope_names_the_field(scope: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        mapping.check_scope(tokenizer_pb2.HashScope(**scope))
    assert caught.value.field == field


def test_a_scope_at_its_limits_is_taken() -> None:
    mapping.check_scope(tokenizer_pb2.HashScope(block_size=1024, tenant_salt="x" * 128, adapter="x" * 128))
