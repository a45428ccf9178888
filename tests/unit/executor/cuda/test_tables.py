"""What the kernels are told of a step, against a reader that follows it token by token."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from weir_executor.paged.cuda.tables import NOWHERE, tables


@dataclass(frozen=True, slots=True)
class _Row:
    first: int
    count: int
    blocks: list[int]


_SHAPES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(shapes=_SHAPES, block_size=st.integers(1, 6), few=st.integers(1, 4), many=st.integers(4, 8), rng=st.randoms())
def test_every_token_finds_its_slot_and_every_query_its_tile(shapes, block_size, few, many, rng) -> None:  # type: ignore[no-untyped-def]
    # The sequence owns blocks beyond what the row computes, and they are in no order.
    rows = [
        _Row(first, count, rng.sample(range(200), -(-(first + count) // block_size) + 1)) for first, count in shapes
    ]
    told = tables(rows, block_size, few, many)
    tiles = [told.few[i : i + 2] for i in range(0, len(told.few), 2)]
    assert told.few_tokens == sum(rows[row].count for row, _ in tiles)
    tiles += [told.many[i : i + 2] for i in range(0, len(told.many), 2)]
    seen, token = [], 0
    for index, row in enumerate(rows):
        first_token, count, length, first_block = told.rows[4 * index : 4 * index + 4]
        assert (first_token, count, length) == (token, row.count, row.first + row.count)
        for position in range(row.first, length):
            block_id = told.block_ids[first_block + position // block_size]
            assert block_id == row.blocks[position // block_size]
            assert told.slots[token] == block_id * block_size + position % block_size
            token += 1
        width = few if [index, 0] in tiles[: len(told.few) // 2] else many
        seen += [query for row_, first in tiles if row_ == index for query in range(first, min(first + width, count))]
        assert seen[-count:] == list(range(count))
    assert len(seen) == len(told.slots) == token


def test_padding_is_written_nowhere_and_sees_nothing() -> None:
    told = tables([_Row(4, 1, [7, 3]), _Row(0, 1, [5])], 4, 2, 8)
    told.pad_to(4)
    assert told.slots == [12, 20, NOWHERE, NOWHERE]
    assert told.rows == [0, 1, 5, 0, 1, 1, 1, 2, 2, 1, 0, 0, 3, 1, 0, 0]
    assert told.few == [0, 0, 1, 0, 2, 0, 3, 0]
    assert told.few_tokens == told.num_rows == 4
