"""A state's sets are those of xgrammar's own package, and stop tokens are in them exactly where an end is allowed."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
import torch

from models_fixture import EOS, VOCAB_SIZE
from unit.executor.guide_tokens import PADDING, compiled, ids_of, token_bytes
from weir_executor.guided.bitmask import has, is_absent, no_tokens, put
from weir_executor.guided.guide import Guide, GuideKind, choice_guide
from weir_executor.guided.state import XgrammarState

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"enum": ["x", "é"]}}},
        "required": ["a"],
    }
)
_CONTENT = {"type": "json_schema", "json_schema": json.loads(SCHEMA)}
_TAGS = [{"begin": "<tool>", "content": _CONTENT, "end": "</tool>"}]
_FORMAT = {"type": "triggered_tags", "triggers": ["<tool>"], "tags": _TAGS}
TAG = json.dumps({"type": "structural_tag", "format": _FORMAT})
GUIDES = [
    Guide(GuideKind.JSON_SCHEMA, SCHEMA),
    Guide(GuideKind.JSON_OBJECT),
    Guide(GuideKind.REGEX, r"[a-f]{2,5}(yes|no)?\d+"),
    Guide(GuideKind.EBNF, 'root ::= "(" root ")" | [a-z]'),
    choice_guide(["yes", "no", 'n"\\ü\n', "yesterday"]),
    Guide(GuideKind.STRUCTURAL_TAG, TAG),
]


def _allowed(state: XgrammarState, stop: list[int] | None = None, *, may_end: bool = True) -> set[int]:
    words = state.allowed([EOS] if stop is None else stop, may_end=may_end)
    return {token_id for token_id in range(VOCAB_SIZE) if has(words, token_id)}


@pytest.mark.parametrize("guide", GUIDES, ids=[guide.kind.value for guide in GUIDES])
def test_the_sets_are_those_of_xgrammars_package(guide: Guide) -> None:
    import xgrammar

    encoded = [b"" if token_id == EOS else data for token_id, data in enumerate(token_bytes())]
    info = xgrammar.TokenizerInfo(encoded, xgrammar.VocabType.RAW, vocab_size=VOCAB_SIZE, stop_token_ids=[EOS])
    compiler, text = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False), guide.text
    oracle_grammar = {
        GuideKind.JSON_SCHEMA: lambda: compiler.compile_json_schema(text),
        GuideKind.JSON_OBJECT: lambda: compiler.compile_json_schema('{"type": "object"}'),
        GuideKind.REGEX: lambda: compiler.compile_regex(text),
        GuideKind.STRUCTURAL_TAG: lambda: compiler.compile_structural_tag(text),
    }.get(guide.kind, lambda: compiler.compile_grammar(text))()
    for seed in range(5):
        oracle, state, draw = xgrammar.GrammarMatcher(oracle_grammar), compiled(guide).start(), random.Random(seed)
        mask = torch.zeros((1, -(-VOCAB_SIZE // 32)), dtype=torch.int32)
        for _ in range(40):
            oracle.fill_next_token_bitmask(mask)
            wanted = {token_id for token_id in range(VOCAB_SIZE) if has(mask[0].numpy(), token_id)}
            assert _allowed(state) == wanted
            assert state.allows_end == (EOS in wanted)
            text_tokens = sorted(wanted - {EOS})
            assert state.allows_text == bool(text_tokens)
            if not text_tokens:
                break
            token_id = draw.choice(text_tokens)
            assert oracle.accept_token(token_id)
            assert state.advance(token_id)


def test_what_is_not_allowed_changes_nothing() -> None:
    state = compiled(GuideKind.REGEX, "ab+").start()
    before = _allowed(state)
    for token_id in (*ids_of("b"), EOS, PADDING, VOCAB_SIZE + 5):
        assert not state.advance(token_id)
    assert _allowed(state) == before == {*ids_of("a"), token_bytes().index(b"ab")}


def test_rollback_goes_back() -> None:
    state = compiled(GuideKind.REGEX, "abc|abd").start()
    sets = [_allowed(state)]
    for token_id in ids_of("abc"):
        assert state.advance(token_id)
        sets.append(_allowed(state))
    assert sets[-1] == {EOS}
    state.rollback(2)
    assert _allowed(state) == sets[1]
    state.rollback(0)
    assert state.advance(ids_of("b")[0])
    assert _allowed(state) == sets[2]


def test_a_stop_token_is_allowed_where_the_guide_allows_an_end() -> None:
    state = compiled(GuideKind.REGEX, "a{2,3}").start()
    marker = ids_of("#")[0]
    for count in range(4):
        assert (marker in _allowed(state, [marker])) == (count >= 2)
        assert marker not in _allowed(state, [marker], may_end=False)
        assert EOS not in _allowed(state, [])
        if count < 3:
            assert state.advance(ids_of("a")[0])


def test_a_stop_token_that_is_text_is_allowed_where_it_completes_the_guide() -> None:
    state = compiled(GuideKind.JSON_OBJECT).start()
    brace = ids_of("}")[0]
    for token_id in ids_of('{"a":{"b":1'):
        assert state.advance(token_id)
    assert brace in _allowed(state)
    assert brace not in _allowed(state, [brace])  # it would end the output inside of the outer object
    assert state.advance(brace)
    assert brace in _allowed(state, [brace])
    assert brace not in _allowed(state, [brace], may_end=False)


def test_options_are_taken_as_they_are() -> None:
    options = ["yes", 'q"uote', "back\\slash", "new\nline", "[a-z]", "é😀", " "]
    for option in options:
        state = compiled(choice_guide(options)).start()
        for token_id in ids_of(option):
            assert state.advance(token_id), option
        assert state.allows_end


def test_a_grammar_that_takes_too_long_is_noticed() -> None:
    guide = compiled(GuideKind.EBNF, 'root ::= root root | "a"')
    ticks = itertools.chain([0.0, 0.01, 1.0, 1.05, 2.0, 2.2], itertools.repeat(3.0))
    guide.clock = lambda: next(ticks)
    state = guide.start()
    slow = []
    for _ in range(3):
        assert state.advance(ids_of("a")[0])
        slow.append(state.is_slow)
    assert slow == [False, False, True]


def test_bits() -> None:
    words = no_tokens(70)
    assert words.shape == (3,)
    for token_id in (0, 31, 32, 63, 69):
        put(words, token_id, present=True)
    put(words, 32, present=False)
    other = no_tokens(70)
    absent = is_absent([words, other], 70)
    assert absent.shape == (2, 70)
    assert np.flatnonzero(~absent[0]).tolist() == [0, 31, 63, 69]
    assert absent[1].all()
