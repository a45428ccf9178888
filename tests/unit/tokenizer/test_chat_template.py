from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from unit.tokenizer.model_directories import fixture_template
from weir_chassis.errors import TemplateFailed
from weir_tokenizer.chat_template import Chat, ChatTemplate, ChatTemplates, InvalidTemplateError
from weir_tokenizer.content_format import ContentFormat
from weir_tokenizer.sandbox import Budget, TemplateEnvironment

SECRET = "the-prompt-itself"
USER = {"role": "user", "content": SECRET}


def render(
    environment: TemplateEnvironment,
    source: str,
    chat: Chat | None = None,
    *,
    max_bytes: int = 100_000,
    timeout_s: float = 10.0,
    monotonic: Callable[[], float] = time.monotonic,
) -> str:
    template = ChatTemplate(environment, source, "dir/chat_template.jinja")
    return template.render(chat or Chat([USER]), {}, Budget.start(max_bytes, timeout_s, monotonic))


FAILING = {
    "raises": ("a\n{{ raise_exception('roles must alternate') }}", "roles must alternate (line 2 of the template)"),
    "undefined": ("{{ 'a' + nothing }}", "UndefinedError (line 1 of the template)"),
    "forbidden attribute": ("{{ ''.__class__ | list }}", None),
    "forbidden subclasses": ("{{ ().__class__.__base__.__subclasses__() }}", "unsafe"),
    "forbidden through filters": ("{{ messages | attr('append') }}{{ ''|attr('__class__')|list }}", None),
    "forbidden globals": ("{{ raise_exception.__globals__['json'] }}", "unsafe"),
    "mutation": ("{{ messages.clear() }}", "unsafe"),
    "division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "too much": ("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}", "more than 100000 bytes"),
    "half a surrogate": ("{{ '%c' | format(55357) }}", "UnicodeEncodeError"),
    "include": ("{% include '/etc/passwd' %}", "TypeError"),
}


@pytest.mark.parametrize("case", FAILING)
def test_whatever_a_template_does_wrong_is_its_failure(case: str, environment: TemplateEnvironment) -> None:
    source, words = FAILING[case]
    if words is None:  # the sandbox hides these names instead of refusing them
        assert render(environment, source).strip("[]") == ""
        return
    with pytest.raises(TemplateFailed) as caught:
        render(environment, source)
    assert words in caught.value.message
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    "source",
    ["{{ {}[messages[0].content].x }}", "{{ {}.pop(messages[0].content) }}", "{{ dict(1)[messages[0].content] }}"],
)
def test_an_error_does_not_quote_the_prompt(environment: TemplateEnvironment, source: str) -> None:
    with pytest.raises(TemplateFailed) as caught:
        render(environment, source)
    assert SECRET not in caught.value.message


def test_the_clock_stops_a_template_between_its_pieces(environment: TemplateEnvironment) -> None:
    readings = itertools.count(0.0, 0.5)
    with pytest.raises(TemplateFailed, match="ran longer than 2 s"):
        render(
            environment, "{% for i in range(9) %}{{ i }}{% endfor %}", timeout_s=2.0, monotonic=lambda: next(readings)
        )


def test_bytes_are_counted_and_not_characters(environment: TemplateEnvironment) -> None:
    chat = Chat([{"role": "user", "content": "ж" * 60}])
    assert len(render(environment, "{{ messages[0].content }}", chat, max_bytes=120)) == 60
    with pytest.raises(TemplateFailed, match="more than 119 bytes"):
        render(environment, "{{ messages[0].content }}", chat, max_bytes=119)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<{{ messages[0].content }}>", "<text "),
        ("<{{ messages[0].content | trim }}>", "<text"),
        ("{{ messages[0].content }}|{{ messages[0].content }}>", "text CONTINUE_FINAL_MESSAGE_TAG |text "),
    ],
)
def test_the_final_message_is_left_open(environment: TemplateEnvironment, source: str, expected: str) -> None:
    chat = Chat([{"role": "assistant", "content": "text "}], add_generation_prompt=False, continue_final_message=True)
    assert render(environment, source, chat) == expected


def test_the_last_text_part_is_left_open(environment: TemplateEnvironment) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat = Chat([{"role": "user", "content": parts}], add_generation_prompt=False, continue_final_message=True)
    assert render(environment, fixture_template("vision_parts"), chat) == "<|im_start|>User: onetwo"


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("fixed text", "x", "renders no content"),
        ("{{ messages[0].content | upper }}", "x", "as it is"),
        ("{{ messages[0].role }}{# content #}", "x", "as it is"),
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}", [], "no text to continue"),
    ],
)
def test_a_message_that_cannot_be_continued(
    environment: TemplateEnvironment, source: str, content: Any, words: str
) -> None:
    chat = Chat([{"role": "user", "content": content}], add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(TemplateFailed, match=words):
        render(environment, source, chat)


def test_rendering_changes_nothing_that_it_was_given(environment: TemplateEnvironment) -> None:
    message = {"role": "assistant", "content": "open"}
    chat = Chat([message], add_generation_prompt=False, continue_final_message=True)
    render(environment, "{{ messages[0].content }}", chat)
    assert message == {"role": "assistant", "content": "open"}


def test_variables_cannot_be_messages_but_may_be_special_tokens(environment: TemplateEnvironment) -> None:
    template = ChatTemplate(environment, "{{ bos_token }}{{ messages | length }}", "t")
    chat = Chat([USER], variables={"bos_token": "<other>"})
    assert template.render(chat, {"bos_token": "<s>"}, Budget.start(100, 1, time.monotonic)) == "<other>1"


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ x", "{{ x | nope }}", "{% block a %}{% endblock %}{% block a %}{% endblock %}"]
)
def test_a_template_that_does_not_compile_names_its_file(environment: TemplateEnvironment, source: str) -> None:
    with pytest.raises(InvalidTemplateError, match=r"^dir/chat_template\.jinja, line 1: "):
        ChatTemplate(environment, source, "dir/chat_template.jinja")


def test_which_template_a_chat_gets(environment: TemplateEnvironment) -> None:
    default, tools = (ChatTemplate(environment, text, text) for text in ("a", "b"))
    both = ChatTemplates({"default": default, "tool_use": tools})
    assert both.choose(with_tools=True) is tools
    assert both.choose(with_tools=False) is default
    assert ChatTemplates({"default": default}).choose(with_tools=True) is default
    with pytest.raises(TemplateFailed, match="only rag, tool_use"):
        ChatTemplates({"rag": default, "tool_use": tools}).choose(with_tools=False)
    assert default.content_format is ContentFormat.STRING
