"""Prompt lookup against the plainest search there is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.engine_contract import request
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.sequence import LiveRequest, new_sequences
from weir_executor.paged.speculation import ngram
from weir_executor.paged.speculation.ngram import NgramIndex, NgramProposer
from weir_executor.paged.speculation.proposer import Wish


def _plainly(token_ids: list[int], most: int) -> list[int]:
    """The latest of the longest matches, found by looking at every place."""
    lengths = []
    for place in range(1, len(token_ids)):
        pairs = zip(token_ids[:place][::-1], token_ids[::-1], strict=False)
        same = next((i for i, (one, other) in enumerate(pairs) if one != other), place)
        lengths.append((min(same, ngram._MAX_MATCH), place))
    length, place = max(lengths, default=(0, 0))
    if length < ngram._KEY:
        return []
    longer = list(token_ids)
    for i in range(most):
        longer.append(longer[place + i])
    return longer[len(token_ids) :]


@given(st.lists(st.integers(0, 3), max_size=14), st.integers(1, 6))
@settings(max_examples=400)
def test_the_guess_is_what_followed_the_longest_match(token_ids: list[int], most: int) -> None:
    assert NgramIndex().guess(token_ids, most) == _plainly(token_ids, most)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=5))
@settings(max_examples=200)
def test_an_index_that_grew_guesses_as_a_new_one(pieces: list[list[int]]) -> None:
    grown, token_ids = NgramIndex(), list[int]()
    for piece in pieces:
        token_ids += piece
        assert grown.guess(token_ids, 5) == NgramIndex().guess(token_ids, 5) == _plainly(token_ids, 5)


@pytest.mark.parametrize(
    ("token_ids", "guess"),
    [
        ([], []),
        ([5], []),
        ([5, 6, 7, 8], []),
        ([5, 6, 7, 8, 5, 6], [7, 8, 5, 6]),  # the copy runs into itself
        ([5, 5, 5], [5, 5, 5, 5]),
        ([1, 2, 3, 9, 7, 2, 3, 8, 1, 2, 3], [9, 7, 2, 3]),  # the longer match, though the shorter is later
        ([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3], [8, 1, 2, 3]),  # of equals, the later
    ],
)
def test_examples(token_ids: list[int], guess: list[int]) -> None:
    assert NgramIndex().guess(token_ids, 4) == guess


def test_a_long_prompt_is_remembered_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "_WINDOW", 8)
    index = NgramIndex()
    assert index.guess([1, 2, 3, *range(10, 16), 1, 2], 1) == []
    assert index.guess([1, 2, 3, *range(10, 16), 1, 2, 11, 12], 1) == [13]
    assert len(index._previous) == 10


def test_an_index_goes_with_its_sequence() -> None:
    proposer = NgramProposer()
    live = LiveRequest(request(1, [1, 2, 3, 1, 2]), 1, frozenset(), False, 0.0)
    (sequence,) = new_sequences(live, 4)
    assert list(proposer.propose([Wish(Scheduled(sequence, 4, 1), 3)])) == [[3, 1, 2]]
    assert len(proposer._indexes) == 1
    del sequence
    assert len(proposer._indexes) == 0
