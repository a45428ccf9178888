from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.guided.bindings import bindings
from weir_executor.guided.dead_ends import endless_rule

_NAMES = ["root", "a", "b", "c"]


def _find(ebnf: str) -> str | None:
    return endless_rule(bindings().Grammar.from_ebnf(ebnf, "root").serialize_json())


@pytest.mark.parametrize(
    ("ebnf", "rule"),
    [
        ('root ::= "x"', None),
        ('root ::= ""', None),
        ('root ::= "x" root', "root"),
        ("root ::= root", "root"),
        ('root ::= "x" root | "y"', None),
        ('root ::= "x" | a\na ::= "y" a', "a"),
        ('root ::= "x" | a\na ::= b\nb ::= "z" a', "a"),
        ('root ::= "x"\na ::= "y" a', None),  # nobody gets there
        ('root ::= a*\na ::= "y" a', "a"),
        ("root ::= [a-z]* [^b]", None),
        ('root ::= a{2,300}\na ::= "x" | "y" a', None),
        ('root ::= a{2,300}\na ::= "y" a', "root"),
        ('root ::= TagDispatch(("<t>", a))\na ::= "y"', None),
        ('root ::= TagDispatch(("<t>", a))\na ::= "y" a', "a"),
    ],
)
def test_a_rule_that_never_ends_is_found(ebnf: str, rule: str | None) -> None:
    assert _find(ebnf) == rule


_parts = st.lists(st.one_of(st.sampled_from(_NAMES), st.just('"x"')), min_size=1, max_size=3)
_grammars = st.fixed_dictionaries({name: st.lists(_parts, min_size=1, max_size=3) for name in _NAMES})


@given(_grammars)
def test_it_is_what_trying_every_depth_finds(grammar: dict[str, list[list[str]]]) -> None:
    """A rule that can end can within as many levels as there are rules: the shortest way nests none in itself."""

    def can_end(name: str, depth: int) -> bool:
        return depth > 0 and any(
            all(part not in grammar or can_end(part, depth - 1) for part in choice) for choice in grammar[name]
        )

    reachable = {"root"}
    for _ in _NAMES:
        reachable |= {part for name in reachable for choice in grammar[name] for part in choice if part in grammar}
    endless = {name for name in reachable if not can_end(name, len(_NAMES))}
    found = _find("\n".join(f"{name} ::= {' | '.join(map(' '.join, choices))}" for name, choices in grammar.items()))
    assert (found in endless) if endless else (found is None)


def test_another_format_is_noticed() -> None:
    with pytest.raises(AssertionError, match="v10"):
        endless_rule('{"__VERSION__": "v10"}')
