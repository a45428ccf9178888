"""Conversations as data, and the one template that turns them into text, here and in every serving stack."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

Message = dict[str, Any]
Exchange = tuple[str, str]
"""What the user says, and what the assistant answers."""

Intent = Callable[[Random], list[Exchange]]
"""Makes one subject's exchange, with any follow-ups."""

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


def _compiled_template() -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(CHAT_TEMPLATE)


_TEMPLATE = _compiled_template()


def render(messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
    """The conversation's text in the model's own markup, without a generation prompt."""
    text: str = _TEMPLATE.render(messages=list(messages), tools=list(tools), add_generation_prompt=False)
    return text


def as_messages(exchanges: Sequence[Exchange], system: str = "") -> list[Message]:
    """Exchanges in order as role-tagged messages, after the system message if there is one."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for user, assistant in exchanges:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


_OPENERS = ("Please ", "Can you ", "Could you ", "Could you please ", "I want you to ", "I'd like you to ", "Now ")
_LEADS = ("Hi! ", "Hello, ", "Hey, ", "Quick question: ", "Question: ", "I wonder: ", "OK, ", "Tell me, ", "So, ")


def asked(rng: Random, question: str) -> str:
    """A question as people type it: sometimes with a lead, sometimes lower-case or without its mark."""
    if rng.random() < 0.15:
        question = rng.choice(_LEADS) + question
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.15:
        question = question.rstrip("?.")
    return question.lower() if rng.random() < 0.07 else question


def bidden(rng: Random, command: str) -> str:
    """A command ("Write a story.") as people type it: bare, polite, or as a question."""
    if rng.random() < 0.55:
        return asked(rng, command)
    opener = rng.choice(_OPENERS)
    text = opener + command[0].lower() + command[1:]
    if opener.startswith(("Can", "Could")):
        text = text.rstrip(".") + "?"
    return text
