"""What a row may draw at each of its places, and which drafts are worth computing."""

from __future__ import annotations

from typing import Any

import pytest

from contract.engine_contract import request
from models_fixture import EOS, VOCAB_SIZE
from unit.executor.guide_tokens import compiled, ids_of
from weir_chassis.errors import InvalidArgument
from weir_executor.guided.bitmask import has
from weir_executor.guided.guide import GuideKind
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.guides import allowed_by_guides, allowed_drafts, start_guides
from weir_executor.paged.sequence import LiveRequest, Sequence


def _sequence(regex: str, said: str = "", **fields: Any) -> Sequence:
    guide = compiled(GuideKind.REGEX, regex)
    asked = request(1, ids_of("?"), 50, guide=guide, resumed={0: ids_of(said)}, **fields)
    (state,) = start_guides(asked, frozenset({EOS}))
    live = LiveRequest(asked, 1, frozenset({EOS}), False, 0.0)
    return Sequence(live, 0, ids_of("?" + said), [], state, blocks=[0])


def _row(sequence: Sequence, drafts: str = "", *more: int) -> Scheduled:
    draft_token_ids = (*ids_of(drafts), *more)
    return Scheduled(sequence, len(sequence.token_ids) - 1, 1 + len(draft_token_ids), draft_token_ids)


def _sets(row: Scheduled) -> list[set[int]]:
    allowed, errors = allowed_by_guides([row])
    assert not errors, errors
    return [{token_id for token_id in range(VOCAB_SIZE) if has(words, token_id)} for words in allowed[0]]


def _bytes(*texts: str) -> set[int]:
    return {token_id for text in texts for token_id in ids_of(text)}


def test_each_place_has_the_set_after_the_drafts_before_it() -> None:
    sequence = _sequence("p(q|r)(s|t)?", "p")
    row = _row(sequence, "qs")
    assert _sets(row) == [_bytes("q", "r"), _bytes("s", "t") | {EOS}]  # after the s there is nothing left to draw
    assert _sets(row) == _sets(row)  # and the sequence stands where it stood
    assert _sets(_row(sequence)) == [_bytes("q", "r")]


def test_what_comes_after_a_draft_that_cannot_stand_is_left_out() -> None:
    sequence = _sequence("p(q|r)(s|t)?", "p")
    assert _sets(_row(sequence, "sq")) == [_bytes("q", "r")]
    assert _sets(_row(sequence, "q", EOS)) == [_bytes("q", "r"), _bytes("s", "t") | {EOS}]


def test_an_end_waits_for_min_tokens_at_each_place_apart() -> None:
    sequence = _sequence("p{1,9}", "p", min_tokens=3)
    assert [EOS in allowed for allowed in _sets(_row(sequence, "ppp"))] == [False, False, True, True]


@pytest.mark.parametrize(("said", "fields", "words"), [("p", {}, "a dead end after 1 tokens")])
def test_a_row_with_nothing_to_draw_has_an_error(said: str, fields: dict[str, Any], words: str) -> None:
    dead = _row(_sequence(r"p\x00", said, **fields))
    allowed, errors = allowed_by_guides([_row(_sequence("pq")), dead, _row(_sequence("q"))])
    assert (sorted(allowed), list(errors)) == ([0, 2], [1])
    assert isinstance(errors[1], InvalidArgument)
    assert words in errors[1].description


def test_drafts_are_cut_where_the_guide_no_longer_takes_them() -> None:
    sequence = _sequence("p(qr)*", "p")
    assert allowed_drafts(sequence, ids_of("qrqpqr")) == ids_of("qrq")
    assert allowed_drafts(sequence, [*ids_of("qr"), EOS]) == ids_of("qr")
    assert allowed_drafts(sequence, ids_of("x")) == []
    assert _sets(_row(sequence)) == [_bytes("q") | {EOS}]
    sequence.guide = None
    assert allowed_drafts(sequence, ids_of("x")) == ids_of("x")
