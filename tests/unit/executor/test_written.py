"""Which tokens a second model has written, against a table of what stands where."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.engine_contract import request
from weir_executor.paged.batch import Batch, BlockLoad, Scheduled
from weir_executor.paged.sequence import LiveRequest, Sequence
from weir_executor.paged.speculation.written import WrittenTokens

_SIZE = 4


def _row(blocks: list[int], first: int, count: int) -> Scheduled:
    live = LiveRequest(request(1, [1] * 40), 1, frozenset(), False, 0.0)
    return Scheduled(Sequence(live, 0, [1] * 40, [], blocks=blocks), first, count)


def test_what_is_written_in_order_is_known() -> None:
    written = WrittenTokens(8, _SIZE)
    blocks = [5, 2, 7]
    assert written.leading(blocks, 10) == 0
    written.write(blocks, 0, 6)
    assert written.leading(blocks, 10) == 6
    written.write(blocks, 6, 4)
    assert (written.leading(blocks, 10), written.leading(blocks, 7)) == (10, 7)
    written.write(blocks, 5, 1)
    assert written.leading(blocks, 10) == 6, "what came after was of other tokens"


def test_a_gap_is_a_bug_of_ours() -> None:
    written = WrittenTokens(8, _SIZE)
    with pytest.raises(AssertionError):
        written.write([0, 1], 2, 1)


def test_a_block_that_begins_anew_or_is_loaded_is_forgotten() -> None:
    written = WrittenTokens(8, _SIZE)
    written.write([3, 4, 5], 0, 12)
    written.note(Batch([_row([3, 4, 5], 5, 4)]))
    assert written.leading([3, 4, 5], 12) == 8, "the second block went on, the third began"
    written.note(Batch(loads=[BlockLoad(3, b"")]))
    assert written.leading([3, 4, 5], 12) == 0
    assert written.leading([4], 4) == 4


@pytest.mark.parametrize(
    ("first", "count", "begun"), [(0, 1, [9]), (1, 3, []), (1, 4, [8]), (4, 9, [8, 7, 6]), (3, 0, [])]
)
def test_which_blocks_a_row_begins(first: int, count: int, begun: list[int]) -> None:
    assert WrittenTokens(10, _SIZE).begun([9, 8, 7, 6], first, count) == begun


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6), st.integers(0, 3)), max_size=30))
@settings(max_examples=200)
def test_what_it_says_is_written_is_what_a_cache_would_hold(steps: list[tuple[int, int, int]]) -> None:
    """Two sequences take turns in a pool; after each step some of the drafts are kept and the rest are other tokens."""
    written, cache = WrittenTokens(20, _SIZE), dict[tuple[int, int], object]()
    tables = [list(range(10)), list(range(10, 20))]
    tokens: list[list[object]] = [[object()], [object()]]
    for which, num_drafts, kept in steps:
        blocks, own = tables[which], tokens[which]
        first = len(own) - 1
        written.note(Batch([_row(blocks, first, 1)]))
        written.forget(written.begun(blocks, len(own), num_drafts))
        drafts = [object() for _ in range(num_drafts)]
        start = written.leading(blocks, first)
        for place in range(start):
            assert cache[blocks[place // _SIZE], place % _SIZE] is own[place]
        whole = own + drafts[:-1]
        for place in range(start, len(whole)):
            cache[blocks[place // _SIZE], place % _SIZE] = whole[place]
        written.write(blocks, start, len(whole) - start)
        own += [*drafts[:kept], object()]
        if len(own) > 30:
            tokens[which] = [object()]
            tables[which].reverse()
