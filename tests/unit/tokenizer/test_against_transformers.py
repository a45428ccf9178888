"""transformers is the oracle: the same text from every family's template, the same ids from every tokenizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from unit.tokenizer.conftest import NOW
from unit.tokenizer.model_directories import (
    added_token,
    byte_level_json,
    fixture_template,
    metaspace_json,
    with_truncation,
    write_model,
)
from weir_chassis.errors import TemplateFailed
from weir_tokenizer.chat_template import Chat
from weir_tokenizer.encoding_cache import EncodingCache
from weir_tokenizer.model import TextModel, load_model
from weir_tokenizer.sandbox import Budget, TemplateEnvironment

USER = {"role": "user", "content": " What is the weather in Paris? <|im_end|> 🙂 "}
SYSTEM = {"role": "system", "content": "You are a weir."}
ASSISTANT = {"role": "assistant", "content": "It is sunny. "}
AGAIN = {"role": "user", "content": "And tomorrow?\n"}
THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nRain."}
REASONED = {"role": "assistant", "content": "Rain.", "reasoning_content": "Hm."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abcdef123",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Orléans", "days": 2, "deep": {"z": [1, None]}}},
        }
    ],
}
RESULT = {"role": "tool", "content": "sunny & <warm>", "tool_call_id": "abcdef123", "name": "get_weather"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather of a city\'s "centre" <now>',
            "parameters": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]

CHATS = {
    "one": Chat([USER]),
    "system": Chat([SYSTEM, USER]),
    "turns": Chat([USER, ASSISTANT, AGAIN]),
    "no_generation_prompt": Chat([USER, ASSISTANT], add_generation_prompt=False),
    "tools": Chat([SYSTEM, USER], tools=TOOLS),
    "tool_use": Chat([USER, CALL, RESULT, ASSISTANT, AGAIN], tools=TOOLS),
    "thought": Chat([USER, THOUGHT, AGAIN]),
    "reasoned": Chat([USER, REASONED], add_generation_prompt=False),
    "no_thinking": Chat([USER], variables={"enable_thinking": False}),
    "date": Chat([USER], variables={"date_string": "1 Apr 2026"}),
    "other_bos": Chat([USER], variables={"bos_token": "<other>"}),
    "documents": Chat([USER], documents=[{"title": "t", "text": "x"}]),
    "continued": Chat([USER, ASSISTANT], add_generation_prompt=False, continue_final_message=True),
    "continued_user": Chat([USER], add_generation_prompt=False, continue_final_message=True),
}
FAMILIES = {
    "llama2": metaspace_json,
    "llama3_tools": byte_level_json,
    "mistral_instruct": metaspace_json,
    "qwen_thinking": byte_level_json,
    "chatml": byte_level_json,
    "gemma": metaspace_json,
    "phi3": metaspace_json,
    "deepseek_r1": byte_level_json,
}


class _FixedNow(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return NOW


@pytest.fixture(autouse=True)
def _fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", _FixedNow)


def open_both(directory: Path) -> tuple[TextModel, Any]:
    """Our model and transformers' tokenizer, from one directory."""
    ours = load_model(
        "m",
        directory,
        revision=None,
        max_prompt_tokens=None,
        max_text_bytes=1 << 20,
        environment=TemplateEnvironment(lambda: NOW),
        cache=EncodingCache(0),
    )
    return ours, AutoTokenizer.from_pretrained(str(directory), local_files_only=True)


def budget() -> Budget:
    return Budget.start(1 << 20, 10.0, time.monotonic)


def their_text(oracle: Any, chat: Chat) -> str | None:
    """What transformers renders, None where it refuses."""
    try:
        return str(oracle.apply_chat_template(chat.messages, tokenize=False, **arguments(chat)))
    except Exception:
        return None


def arguments(chat: Chat) -> Mapping[str, Any]:
    return {
        "tools": chat.tools,
        "documents": chat.documents,
        "add_generation_prompt": chat.add_generation_prompt,
        "continue_final_message": chat.continue_final_message,
        **chat.variables,
    }


def our_text(model: TextModel, chat: Chat) -> str | None:
    try:
        return model.render(chat, budget())
    except TemplateFailed:
        return None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_renders_and_encodes_as_transformers(family: str, tmp_path: Path) -> None:
    model, oracle = open_both(
        write_model(tmp_path, tokenizer_json=FAMILIES[family](), template=fixture_template(family))
    )
    rendered = 0
    for name, chat in CHATS.items():
        text, theirs = our_text(model, chat), their_text(oracle, chat)
        assert text == theirs, name
        if text is not None:
            ids = oracle.apply_chat_template(chat.messages, return_dict=False, **arguments(chat))
            [ours] = model.encode([text], ["prompt"], add_special_tokens=False)
            assert ours.tolist() == ids, name
            rendered += 1
    # Families refuse what they do not know (Gemma a system message), but each renders most chats.
    assert rendered >= 9


def test_what_one_refuses_the_other_refuses(tmp_path: Path) -> None:
    model, oracle = open_both(write_model(tmp_path, template=fixture_template("gemma")))
    assert our_text(model, CHATS["system"]) is None
    assert their_text(oracle, CHATS["system"]) is None


FRAGMENTS = [
    "{{ strftime_now('%Y-%m-%d %H:%M') }}",
    "{{ messages | tojson }}|{{ messages | tojson(indent=2) }}|{{ tools | tojson(sort_keys=true) }}",
    "{{ messages | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "{% set ns = namespace(a=1, self='x') %}{% set ns.a = ns.a + 2 %}{{ ns.a }}{{ ns.self }}",
    "{{ dict(a=1).a }}{{ dict.fromkeys(['a', 'b'], 0) }}",
    "{% set ns = namespace(_a=1) %}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ image_token }}{{ sep_token }}",
    "{% generation %}{% set x = 1 %}{{ messages[0].content }}{% endgeneration %}{{ x }}",
    "{% macro twice(x) %}{{ x }}{{ caller() }}{{ x }}{% endmacro %}{% call twice('-') %}inner{% endcall %}",
    "{{ 'a' ~ 1 ~ none ~ [2] }}{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ [1] + [2] }}{{ undefined_name ~ 'x' }}",
    "  {% if true %}  \n  trimmed\n  {% endif %}  \n",
    "{{ messages.append(1) }}",
    "{{ messages[0].__class__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages[0].missing.deeper }}",
    "{{ 'x' + undefined_name }}",
    "{{ raise_exception('no') }}",
    "{{ messages[0]['content'] | trim | upper }}{{ messages | map(attribute='role') | join(',') }}",
    "{{ documents[0].title if documents else 'none' }}{{ tools is none }}{{ documents is none }}",
    "{% include 'x' %}",
    "{{ 1 / 0 }}",
    "{{ messages[0]['content'][:3] }}{{ messages[::-1] | length }}{{ '%s-%d' | format('a', 3) }}{{ '{}'.format(1) }}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% else %}none{% endfor %}",
]


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_name_and_construct_means_what_it_means_there(fragment: str, tmp_path: Path) -> None:
    model, oracle = open_both(write_model(tmp_path, template=fragment, image_token="<image>"))
    for name in ("one", "turns", "tools", "documents", "continued"):
        assert our_text(model, CHATS[name]) == their_text(oracle, CHATS[name]), name


def test_named_templates_are_chosen_as_there(tmp_path: Path) -> None:
    templates = [
        {"name": "default", "template": "default:{{ messages[0].content }}"},
        {"name": "tool_use", "template": "tools:{{ tools | length }}"},
    ]
    model, oracle = open_both(write_model(tmp_path, template=templates))
    assert our_text(model, CHATS["one"]) == their_text(oracle, CHATS["one"]) == "default:" + USER["content"]
    assert our_text(model, CHATS["tools"]) == their_text(oracle, CHATS["tools"]) == "tools:2"


def test_template_files_go_before_the_configuration(tmp_path: Path) -> None:
    write_model(tmp_path, template="config", jinja_file="file:{{ bos_token }}\n")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("extra")
    model, oracle = open_both(tmp_path)
    assert our_text(model, CHATS["one"]) == their_text(oracle, CHATS["one"]) == "file:<s>"
    assert our_text(model, CHATS["tools"]) == their_text(oracle, CHATS["tools"]) == "extra"


TEXTS = [
    "Hello",
    " leading",
    "trailing ",
    "a\n\nb\t",
    "東京 🙂\u200d🙂",
    "<s>x</s><|im_start|>",
    "\x00\ufffd",
    "  ",
    "Größe" * 99,
]


@pytest.mark.parametrize("tokenizer_json", [byte_level_json, metaspace_json])
@pytest.mark.parametrize("special", [True, False])
def test_ids_and_text_equal_transformers(tokenizer_json: Callable[[], str], special: bool, tmp_path: Path) -> None:
    model, oracle = open_both(write_model(tmp_path, tokenizer_json=tokenizer_json()))
    ours = [ids.tolist() for ids in model.encode(TEXTS, TEXTS, add_special_tokens=special)]
    assert ours == [oracle(text, add_special_tokens=special)["input_ids"] for text in TEXTS]
    assert model.decode(ours, skip_special_tokens=special) == [
        oracle.decode(ids, skip_special_tokens=special) for ids in ours
    ]


@pytest.fixture(scope="module")
def metaspace_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextModel, Any]:
    return open_both(write_model(tmp_path_factory.mktemp("metaspace"), tokenizer_json=metaspace_json()))


@settings(max_examples=60)
@given(text=st.text(min_size=1, max_size=60))
def test_any_text_encodes_as_transformers(metaspace_pair: tuple[TextModel, Any], text: str) -> None:
    model, oracle = metaspace_pair
    [ours] = model.encode([text], ["t"], add_special_tokens=True)
    assert ours.tolist() == oracle(text)["input_ids"]


SPECIAL_TOKEN_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "added by id": {
        "added_tokens_decoder": {"900": added_token("<|new|>"), "901": added_token("<|plain|>", special=False)}
    },
    "named only": {"eos_token": "<|new|>"},
    "named as object": {"eos_token": {"__type": "AddedToken", **added_token("<|new|>", rstrip=False)}},
    "extra list": {"additional_special_tokens": ["<|new|>", "<|im_end|>"]},
    "extra list, newer name": {"extra_special_tokens": ["<|new|>"]},
    "extra with names": {"extra_special_tokens": {"boi_token": "<|new|>"}},
    "of the model's own": {"image_token": "<|new|>"},
    "in the vocabulary but not marked": {"eos_token": "e"},
}


@pytest.mark.parametrize("case", SPECIAL_TOKEN_CONFIGURATIONS)
def test_special_tokens_of_the_configuration(case: str, tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{{ eos_token }}{{ boi_token }}{{ image_token }}{{ messages[0].content }}<|new|><|plain|>the"
    )
    model, oracle = open_both(write_model(tmp_path, template=template, **SPECIAL_TOKEN_CONFIGURATIONS[case]))
    text = our_text(model, CHATS["one"])
    assert text == their_text(oracle, CHATS["one"])
    assert text is not None
    [ours] = model.encode([text], ["prompt"], add_special_tokens=False)
    assert ours.tolist() == oracle.apply_chat_template([USER], return_dict=False, add_generation_prompt=True)
    assert model.decode([ours], skip_special_tokens=True) == [oracle.decode(ours.tolist(), skip_special_tokens=True)]
    assert model.vocab_size == max(oracle.get_vocab().values()) + 1


def test_older_directories_name_their_tokens_in_special_tokens_map(tmp_path: Path) -> None:
    write_model(tmp_path, template="{{ eos_token }}|{{ bos_token }}")
    (tmp_path / "special_tokens_map.json").write_text(
        '{"eos_token": "<|im_end|>", "bos_token": {"content": "<|end|>"}}'
    )
    model, oracle = open_both(tmp_path)
    assert our_text(model, CHATS["one"]) == their_text(oracle, CHATS["one"]) == "<|im_end|>|<|end|>"


def test_a_truncating_and_padding_file_does_neither(tmp_path: Path) -> None:
    model, oracle = open_both(write_model(tmp_path, tokenizer_json=with_truncation(byte_level_json(), 8)))
    for text in ("short", "a text that is much longer than eight tokens, surely"):
        [ours] = model.encode([text], ["t"], add_special_tokens=True)
        assert ours.tolist() == oracle(text, truncation=False, padding=False)["input_ids"]


def test_equal_to_the_fast_tokenizer_class_too(tmp_path: Path) -> None:
    directory = write_model(tmp_path, tokenizer_json=metaspace_json(), template=fixture_template("llama2"))
    oracle = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    model, _ = open_both(directory)
    assert our_text(model, CHATS["turns"]) == their_text(oracle, CHATS["turns"])
