"""Guides, for an engine that compiles and follows them by itself: what it is handed, and what it is not asked. Pure.

A request's guide has been compiled before the request comes here (`guided/`), by the xgrammar that the engine compiles
it by again: what is malformed, endless, a dead end, too large or too slow was refused there, in a process that may be
ended. In the engine such a guide, or a token that its guide does not take, ends the rank's loop, and every request with
it (https://github.com/NVIDIA/TensorRT-LLM: _torch/pyexecutor/guided_decoder.py and grammar_matcher.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weir_chassis.errors import Unsupported
from weir_executor.guided.guide import ANY_OBJECT, Guide, GuideKind
from weir_executor.request import GenerationRequest

_FIELDS: Mapping[GuideKind, str] = {
    GuideKind.JSON_SCHEMA: "json",
    GuideKind.JSON_OBJECT: "json",
    GuideKind.REGEX: "regex",
    GuideKind.EBNF: "grammar",
    GuideKind.CHOICE: "grammar",
    GuideKind.STRUCTURAL_TAG: "structural_tag",
}


def check_guide(request: GenerationRequest, backend: str | None) -> None:
    """Raises Unsupported for a guide that the engine would not follow, or would come to nothing with."""
    if request.guide is None:
        return
    guide = request.guide.guide
    if backend is None:
        raise Unsupported(f"{guide.field}: the engine has no guided_decoding_backend")
    # After a prompt that another engine has computed it takes that one's token for the first that the guide allowed.
    if any(request.resumed.values()) and not request.handed_state:
        raise Unsupported(f"{guide.field}: TensorRT-LLM begins a guide anew where an output is resumed")
    # Where the guide allows nothing but the end and the end is held back, no token at all is left to draw.
    if request.min_tokens:
        raise Unsupported(f"stopping.min_tokens with {guide.field}: TensorRT-LLM has no way to hold back a guide's end")
    if request.ignore_eos:
        raise Unsupported(f"stopping.ignore_eos with {guide.field}: TensorRT-LLM ends a guide by that token alone")


def guide_arguments(guide: Guide) -> dict[str, Any]:
    """Of `GuidedDecodingParams(...)`. Its own `json_object` takes lists and numbers too, so an object is a schema."""
    return {_FIELDS[guide.kind]: ANY_OBJECT if guide.kind is GuideKind.JSON_OBJECT else guide.text}
