"""What an output must be, and what a guide is once it is compiled. Pure: the waist and the scheduler know no more of it.

    Guide ──compile──▶ CompiledGuide ──start──▶ GuideState       one per output; it follows the output's tokens
    (text)             (one per text, shared)    advance, rollback, fill_mask

A guide decides where its output may end. Where it allows an end and nothing else, the output is over at once, without an
end-of-sequence token; elsewhere such a token, and every stop token, may be drawn only where the guide allows an end.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


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
    """`text` is the schema, expression, grammar or tag; of a choice the grammar that `choice_grammar` makes; else empty."""

    kind: GuideKind
    text: str = field(default="", repr=False)  # a request's content belongs in no log

    @property
    def field(self) -> str:
        """Where a request says it."""
        return f"sampling.guide.{self.kind.value}"


class GuideState(Protocol):
    """Where one output stands in its guide. Used on the engine's thread, after its `start`."""

    @property
    def allows_end(self) -> bool:
        """Whether the output may end here."""

    @property
    def is_complete(self) -> bool:
        """Whether the output can only end here."""

    @property
    def is_stuck(self) -> bool:
        """Whether the output can neither go on nor end: what the guide wants next, no token spells."""

    @property
    def is_slow(self) -> bool:
        """Whether a token has taken so long that the other sequences of the batch suffer for it."""

    def advance(self, token_id: int) -> bool:
        """Take a token that does not end the output. False, and nothing is changed, when the guide does not allow it."""

    def rollback(self, num_tokens: int) -> None:
        """Forget the last tokens that were taken."""

    def fill_mask(self, words: Any, stop_token_ids: Collection[int]) -> None:
        """Write what may be drawn next: bit `id % 32` of word `id // 32`.

        `words` is an int32 array of ⌈vocabulary / 32⌉ in the CPU's memory. Of `stop_token_ids`, with which the output
        ends, those are allowed that leave what the guide accepts as a whole.
        """


class CompiledGuide(Protocol):
    """Immutable and shared by all outputs that follow it. An engine with a compiler of its own needs only `guide`."""

    @property
    def guide(self) -> Guide: ...

    def start(self) -> GuideState: ...


def choice_grammar(options: Collection[str]) -> str:
    """The grammar, as `Guide.ebnf` takes one, whose outputs are these texts."""
    return "root ::= " + " | ".join(f'"{_escaped(option)}"' for option in options)


def _escaped(text: str) -> str:
    """The inside of a literal: what is not plain ASCII is written by its code point."""
    plain = (
        character if character.isascii() and (character.isalnum() or character == " ") else None for character in text
    )
    return "".join(
        kept if kept is not None else f"\\U{ord(character):08X}" for kept, character in zip(plain, text, strict=True)
    )
