"""Drafts stand as far as they are what was drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.paged.speculation.verify import accept
from weir_executor.paged.worker import Draw


def _kept(drawn: list[int], drafts: list[int]) -> list[int]:
    return [draw.token_id for draw in accept([Draw(token_id) for token_id in drawn], drafts)]


@pytest.mark.parametrize(
    ("drawn", "drafts", "kept"),
    [
        ([], [], []),
        ([5], [], [5]),
        ([5, 6, 7], [5, 6], [5, 6, 7]),
        ([5, 6, 7], [5, 9], [5, 6]),
        ([5, 6, 7], [9, 6], [5]),
        ([5, 5, 5, 5], [5, 4, 5], [5, 5]),
    ],
)
def test_drafts_stand_up_to_the_first_that_was_not_drawn(drawn: list[int], drafts: list[int], kept: list[int]) -> None:
    assert _kept(drawn, drafts) == kept


@given(st.lists(st.integers(0, 2), max_size=8), st.data())
def test_what_is_kept_is_what_would_have_been_drawn_without_drafts(drafts: list[int], data: st.DataObject) -> None:
    """A model whose next token depends on all before it: whatever is kept, it drew after what it had kept so far."""

    def model(before: list[int]) -> int:
        return (sum(before) * 7 + len(before)) % 3

    own = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    kept = _kept([model(own + drafts[:i]) for i in range(len(drafts) + 1)], drafts)
    plain: list[int] = []
    while len(plain) < len(kept):
        plain.append(model(own + plain))
    assert kept == plain
    assert 1 <= len(kept) <= len(drafts) + 1
    assert drafts[: len(kept) - 1] == kept[:-1]
