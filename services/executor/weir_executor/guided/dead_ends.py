"""Whether an output that follows a grammar can always come to an end. Pure.

A rule can end when one of its choices can: when all parts of that choice can. A rule that cannot, such as
`a ::= "x" a`, is a trap for every output that enters it. The least fixed point finds them all (Hopcroft and Ullman,
"Introduction to Automata Theory", 7.1.1: symbols that generate).

Grammars come as xgrammar 0.1.32 serialises them, which is version 9 of its format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

FORMAT_VERSION = "v9"


class _Kind(IntEnum):
    """What an expression is, in the order of xgrammar's `GrammarExprType`, and what follows it."""

    BYTES = 0
    CHARACTERS = 1
    CHARACTERS_STAR = 2
    EMPTY = 3
    RULE = 4  # rule
    SEQUENCE = 5  # expressions
    CHOICES = 6  # expressions
    TAG_DISPATCH = 7  # (expression, rule) ..., then four parameters
    REPEAT = 8  # rule, least, most


_TAG_PARAMETERS = 4


class _Grammar:
    def __init__(self, spec: Mapping[str, Any]) -> None:
        assert spec["__VERSION__"] == FORMAT_VERSION, spec["__VERSION__"]
        self.names: Sequence[str] = [rule[0] for rule in spec["rules"]]
        self.bodies: Sequence[int] = [rule[1] for rule in spec["rules"]]
        self.root: int = spec["root_rule_id"]
        # The names of these two fields are the wrong way round in the format itself.
        self._starts, self._data = spec["grammar_expr_data"], spec["grammar_expr_indptr"]

    def expression(self, index: int) -> tuple[_Kind, Sequence[int]]:
        start = self._starts[index]
        kind, length = self._data[start : start + 2]
        return _Kind(kind), self._data[start + 2 : start + 2 + length]


def endless_rule(serialised: str) -> str | None:
    """The name of a rule that an output may enter and never leave; None when there is none."""
    grammar = _Grammar(json.loads(serialised))
    can_end = _rules_that_can_end(grammar)
    reachable = sorted(_reachable(grammar))
    return next((grammar.names[rule] for rule in reachable if rule not in can_end), None)


def _rules_that_can_end(grammar: _Grammar) -> set[int]:
    """By rounds: each finds the rules that can end because of those found before."""
    can_end: set[int] = set()
    left = set(range(len(grammar.bodies)))
    while found := {rule for rule in left if _can_end(grammar, grammar.bodies[rule], can_end)}:
        can_end |= found
        left -= found
    return can_end


def _can_end(grammar: _Grammar, index: int, rules: set[int]) -> bool:
    kind, data = grammar.expression(index)
    match kind:
        case _Kind.RULE:
            return data[0] in rules
        case _Kind.SEQUENCE:
            return all(_can_end(grammar, part, rules) for part in data)
        case _Kind.CHOICES:
            return any(_can_end(grammar, part, rules) for part in data)
        case _Kind.REPEAT:
            return data[1] == 0 or data[0] in rules
        case _:
            return True  # text, or free text that may go on and end before any tag


def _reachable(grammar: _Grammar) -> set[int]:
    seen: set[int] = set()
    left = [grammar.root]
    while left:
        rule = left.pop()
        if rule not in seen:
            seen.add(rule)
            left += _mentioned(grammar, grammar.bodies[rule])
    return seen


def _mentioned(grammar: _Grammar, index: int) -> Iterator[int]:
    kind, data = grammar.expression(index)
    match kind:
        case _Kind.RULE:
            yield data[0]
        case _Kind.REPEAT if data[2] != 0:
            yield data[0]
        case _Kind.SEQUENCE | _Kind.CHOICES:
            for part in data:
                yield from _mentioned(grammar, part)
        case _Kind.TAG_DISPATCH:
            yield from data[1:-_TAG_PARAMETERS:2]
