"""What an output must be, and what a guide is once it is compiled. Pure: waist and scheduler know no more of it.

    Guide ──compile──▶ CompiledGuide ──start──▶ GuideState       one per output; it follows the output's tokens
    (text)             (one per text, shared)    advance, rollback, allowed

A guide decides where its output may end. Where it allows an end and nothing else, the output is over at once, without
an end-of-sequence token. Elsewhere such a token, and every stop token, may be drawn only where the guide allows an end.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import Enum
from typing import Any, Protocol

# What JSON_OBJECT stands for, to every engine.
ANY_OBJECT = '{"type": "object"}'


class GuideKind(Enum):
    """The names are those of the fields of `weir.inference.v1.Guide`."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    EBNF = "ebnf"
    CHOICE = "choice"
    STRUCTURAL_TAG = "structural_tag"


@dataclass(frozen=True, slots=True)
class Guide:
    """`text` is the schema, expression, grammar or tag; of a choice the grammar of its options; else empty."""

    kind: GuideKind
    text: str = dataclass_field(default="", repr=False)  # a request's content belongs in no log

    @property
    def field(self) -> str:
        """Where a request says it."""
        return f"sampling.guide.{self.kind.value}"


class GuideState(Protocol):
    """Where one output stands in its guide. Used by one thread at a time."""

    @property
    def allows_end(self) -> bool:
        """Whether the output may end here."""

    @property
    def allows_text(self) -> bool:
        """Whether the output may go on. Where it may neither end nor go on, the guide is a dead end."""

    @property
    def is_slow(self) -> bool:
        """Whether a token has taken so long that the other sequences of the batch suffer for it."""

    def advance(self, token_id: int) -> bool:
        """Take a token as text. False, and nothing is changed, when the guide does not allow it."""

    def rollback(self, num_tokens: int) -> None:
        """Forget the last tokens that were taken."""

    def allowed(self, stop_token_ids: Collection[int], *, may_end: bool) -> Any:
        """What may be drawn next, as a set of `bitmask.py`, the caller's own.

        Of `stop_token_ids`, with which the output ends, those are in it that leave what the guide accepts as a whole;
        unless it may not end yet, then none.
        """


class CompiledGuide(Protocol):
    """Immutable and shared by all outputs that follow it. An engine with a compiler of its own needs only `guide`."""

    @property
    def guide(self) -> Guide: ...

    def start(self) -> GuideState: ...


def choice_guide(options: Collection[str]) -> Guide:
    """The output is one of these texts."""
    grammar = "root ::= " + " | ".join(f'"{_escaped(option)}"' for option in options)
    return Guide(GuideKind.CHOICE, grammar)


def _escaped(text: str) -> str:
    """The inside of a literal: whatever might have a meaning there is written by its code point."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08X}" for c in text)
