"""Guide → compiled grammar, by xgrammar. A bad one may take down the process that does it: see `compile_process`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weir_executor.guided.bindings import bindings
from weir_executor.guided.dead_ends import endless_rule
from weir_executor.guided.guide import ANY_OBJECT, Guide, GuideKind

# Where in its own source a message comes from is of no use to who wrote the guide.
_SOURCE = re.compile(r"^\[[\d:]+\] \S+:\d+: (Check failed: .* is false: )?")
# xgrammar repeats the guide in some messages.
_MAX_REASON = 300


class GuideError(ValueError):
    """What is wrong with a guide, for whoever wrote it."""


class Tokens:
    """The vocabulary as xgrammar keeps it."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        raw, add_prefix_space = 0, False
        # No stop tokens: where an output may end is asked for apart, and with which token is the request's own affair.
        self.info = bindings().TokenizerInfo(list(token_bytes), raw, len(token_bytes), [], add_prefix_space)
        self.token_bytes = token_bytes


class Compiler:
    """One guide after the other, on one thread, remembering none."""

    def __init__(self, tokens: Tokens) -> None:
        self._compiler = bindings().GrammarCompiler(tokens.info, 1, False, -1)

    def compile(self, guide: Guide) -> Any:
        """xgrammar's compiled grammar. Raises GuideError for one that is malformed, or that an output cannot end."""
        try:
            grammar = _PARSERS[guide.kind](guide.text)
            if (rule := endless_rule(grammar.serialize_json())) is not None:
                raise GuideError(f"nothing that it allows ever ends: rule {rule!r}")
            return self._compiler.compile_grammar(grammar)
        except (RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, GuideError):
                raise
            raise GuideError(_reason(error)) from error


def _reason(error: Exception) -> str:
    return _SOURCE.sub("", str(error)).strip()[:_MAX_REASON]


def _json_schema(text: str) -> Any:
    any_whitespace, indent, separators, strict, most_whitespace, debug = True, None, None, True, None, False
    return bindings().Grammar.from_json_schema(text, any_whitespace, indent, separators, strict, most_whitespace, debug)


def _ebnf(text: str) -> Any:
    return bindings().Grammar.from_ebnf(text, "root")


def _regex(text: str) -> Any:
    return bindings().Grammar.from_regex(text, False)


def _structural_tag(text: str) -> Any:
    try:
        json.loads(text)
    except ValueError as error:
        raise GuideError(f"not JSON: {error}") from error
    return bindings().Grammar.from_structural_tag(text)


_PARSERS: Mapping[GuideKind, Callable[[str], Any]] = {
    GuideKind.JSON_SCHEMA: _json_schema,
    GuideKind.JSON_OBJECT: lambda _: _json_schema(ANY_OBJECT),
    GuideKind.REGEX: _regex,
    GuideKind.EBNF: _ebnf,
    GuideKind.CHOICE: _ebnf,
    GuideKind.STRUCTURAL_TAG: _structural_tag,
}
