"""`weir.inference.v1.Guide` → `Guide`, nothing else. Pure. The limits are those that guide.proto states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weir.inference.v1 import guide_pb2 as pb
from weir_chassis.errors import InvalidArgument
from weir_executor.guided.guide import Guide, GuideKind, choice_guide

_MAX_BYTES: Mapping[GuideKind, int] = {
    GuideKind.JSON_SCHEMA: 64 << 10,
    GuideKind.REGEX: 8 << 10,
    GuideKind.EBNF: 64 << 10,
    GuideKind.STRUCTURAL_TAG: 64 << 10,
}
_MAX_OPTIONS, _MAX_OPTION_BYTES = 256, 1024


def to_guide(asked: pb.Guide) -> Guide:
    """Raises InvalidArgument naming the field and its limit."""
    language = asked.WhichOneof("language")
    if language is None:
        raise InvalidArgument("sampling.guide", "names no language; one of json_schema, json_object, regex, …")
    kind = GuideKind(language)
    if kind is GuideKind.CHOICE:
        _check_options(asked.choice.options)
        return choice_guide(asked.choice.options)
    text = "" if kind is GuideKind.JSON_OBJECT else str(getattr(asked, language))
    guide = Guide(kind, text)
    if kind in _MAX_BYTES:
        _check_text(guide.field, text, _MAX_BYTES[kind])
    return guide


def _check_options(options: Sequence[str]) -> None:
    if not 1 <= len(options) <= _MAX_OPTIONS:
        raise InvalidArgument("sampling.guide.choice.options", f"{len(options)}; 1 to {_MAX_OPTIONS}")
    for index, option in enumerate(options):
        _check_text(f"sampling.guide.choice.options[{index}]", option, _MAX_OPTION_BYTES)


def _check_text(field: str, text: str, most: int) -> None:
    size = len(text.encode())
    if not 1 <= size <= most:
        raise InvalidArgument(field, f"{size} bytes; 1 to {most}")
    if "\0" in text:
        raise InvalidArgument(field, "holds a NUL character")  # where xgrammar would take it to end
