"""Which name a request means that leaves its model open: by its text, and by the length that it turns out to have.

Pure: what a name comes to is another's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weir_router.models.classify import classify
from weir_router.models.config import SelectionTable
from weir_router.request import Prompt, TextPrompt, TokenIdsPrompt

# Beside the empty name.
AUTO: Final = "auto"
DEFAULT: Final = "default"
LONG_CONTEXT: Final = "long_context"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model's or an alias' name, and by which rule it was arrived at; empty: the client named it."""

    name: str
    rule: str = ""


def select(prompt: Prompt, table: SelectionTable) -> Sequence[Wanted]:
    """What the prompt's task is for, then the default, then whatever else would do: each name once."""
    names, rule = table.rules(), _rule(prompt, table)
    in_order = dict.fromkeys((rule, DEFAULT, *names))
    first_rules = {names[each]: each for each in reversed(in_order)}
    return [Wanted(names[each], each) for each in in_order if first_rules[names[each]] == each]


def long_context(prompt_tokens: int, table: SelectionTable) -> Wanted | None:
    """Where a prompt of so many tokens belongs whatever it says; None: nowhere else."""
    if table.long_context is None or prompt_tokens < table.long_context_tokens:
        return None
    return Wanted(table.long_context, LONG_CONTEXT)


def _rule(prompt: Prompt, table: SelectionTable) -> str:
    text = _task(prompt)
    found = classify(text) if text else None
    if found is None or found.kind is None or found.confidence < table.min_confidence:
        return DEFAULT
    return found.kind if found.kind in table.rules() else DEFAULT


def _task(prompt: Prompt) -> str:
    """What was asked last; of token ids, nothing is known."""
    if isinstance(prompt, TextPrompt):
        return prompt.text
    if isinstance(prompt, TokenIdsPrompt):
        return ""
    asked = next((message for message in reversed(prompt.messages) if message.role == "user"), None)
    return "\n".join(part.text for part in asked.content) if asked is not None else ""
