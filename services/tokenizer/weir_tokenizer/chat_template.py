"""A model's chat templates: messages in, the text of the prompt out, as transformers' `apply_chat_template` has it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from weir_chassis.errors import TemplateFailed
from weir_tokenizer.content_format import ContentFormat, content_format
from weir_tokenizer.sandbox import Budget, BudgetExceededError, TemplateEnvironment, spending

# Where the open message ends. The same mark as transformers', space included, because templates that trim show by it.
_OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "
# A template's own words about what it refuses; longer ones would carry the prompt into errors.
_MAX_REASON_CHARS = 300
_FIELD = "prompt"


@dataclass(frozen=True, slots=True)
class Chat:
    """All that a template renders, as plain JSON values in the shapes that transformers' callers use.

    `messages` is not empty; each has `role` and `content`, a string or a list of `{"type": "text", "text": …}`.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


class InvalidTemplateError(Exception):
    """A template of a model directory does not compile. Names the file, the line and the problem."""


class ChatTemplate:
    """One compiled template."""

    def __init__(self, environment: TemplateEnvironment, source: str, filename: str):
        """Raises InvalidTemplateError."""
        self.mentions_content = "content" in source
        self.filename = filename
        self._template, self.content_format = _compiled(environment, source, filename)

    def render(self, chat: Chat, special_tokens: Mapping[str, str], budget: Budget) -> str:
        """The text of the prompt. Raises TemplateFailed for whatever the template does wrong or does not accept."""
        if not chat.continue_final_message:
            return self._generate(chat, chat.messages, special_tokens, budget)
        messages, last_text = _opened(chat.messages)
        if not self.mentions_content:
            raise TemplateFailed(_FIELD, "the template renders no content, so no message can be continued")
        return _cut_at_open_end(self._generate(chat, messages, special_tokens, budget), last_text)

    def _generate(
        self, chat: Chat, messages: Sequence[Mapping[str, Any]], special_tokens: Mapping[str, str], budget: Budget
    ) -> str:
        # What the caller passes wins over special tokens of the same name, as in transformers.
        variables = {
            **special_tokens,
            **chat.variables,
            "messages": messages,
            "tools": chat.tools,
            "documents": chat.documents,
            "add_generation_prompt": chat.add_generation_prompt,
        }
        try:
            with spending(budget):
                return _collect(self._template, variables, budget)
        # A template is foreign code: whatever it raises, KeyError to RecursionError, is its failure and not ours.
        except Exception as error:
            raise TemplateFailed(_FIELD, _reason(error, self.filename)) from error


class ChatTemplates:
    """The templates of one model by name; most have one, `default`."""

    def __init__(self, by_name: Mapping[str, ChatTemplate]):
        assert by_name
        self._by_name = dict(by_name)

    def choose(self, *, with_tools: bool) -> ChatTemplate:
        """`tool_use` for a chat with tools where there is one, else `default`. Raises TemplateFailed without either."""
        if with_tools and "tool_use" in self._by_name:
            return self._by_name["tool_use"]
        if "default" not in self._by_name:
            raise TemplateFailed(_FIELD, f"the model has no default template, only {', '.join(sorted(self._by_name))}")
        return self._by_name["default"]


def _compiled(environment: TemplateEnvironment, source: str, filename: str) -> tuple[Template, ContentFormat]:
    try:
        return environment.load(source, filename), content_format(environment.parse(source, filename=filename))
    except TemplateSyntaxError as error:
        raise InvalidTemplateError(f"{filename}, line {error.lineno}: {error.message}") from error
    except (SyntaxError, RecursionError, ValueError) as error:  # from Python, compiling what Jinja made of the template
        raise InvalidTemplateError(f"{filename}: {type(error).__name__}") from error


def _collect(template: Template, variables: Mapping[str, Any], budget: Budget) -> str:
    """The rendered text, piece by piece, so that a template that never ends is stopped while it is still small."""
    pieces, size = [], 0
    for piece in template.generate(variables):
        size += len(piece.encode())
        budget.check_bytes(size)
        budget.check_time()
        pieces.append(piece)
    return "".join(pieces)


def _opened(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """The messages with the mark at the end of the last one's text, and that text without it."""
    *before, last = messages
    content = last["content"]
    if isinstance(content, str):
        return [*before, {**last, "content": content + _OPEN_END}], content
    if not content:
        raise TemplateFailed(_FIELD, "the final message has no text to continue")
    *parts, end = content
    marked = {**end, "text": end["text"] + _OPEN_END}
    return [*before, {**last, "content": [*parts, marked]}], end["text"]


def _cut_at_open_end(rendered: str, last_text: str) -> str:
    """What stands before the mark; trimmed where the template trimmed the text, and with it the mark's space."""
    mark = _OPEN_END.strip()
    if last_text.strip() not in rendered or mark not in rendered:
        raise TemplateFailed(
            _FIELD, "the template does not render the final message as it is, so it cannot be continued"
        )
    end = rendered.rindex(mark)
    if rendered[end : end + len(_OPEN_END)] == _OPEN_END:
        return rendered[:end]
    return rendered[:end].rstrip()


def _reason(error: Exception, filename: str) -> str:
    """Why the template failed, in words safe to show.

    Only what the template itself says with `raise_exception`, and what the sandbox says, is repeated: other errors may
    quote what was rendered (`'dict object' has no attribute '<the key>'`).
    """
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    place = f" (line {lines[-1]} of the template)" if lines else ""
    if type(error) in (TemplateError, SecurityError, BudgetExceededError):
        return str(error)[:_MAX_REASON_CHARS] + place
    return type(error).__name__ + place
