"""Joining and splitting lose no token, keep every order, and keep log-probabilities with their rows."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.inference.v1.output_pb2 import RowLogprobs, TokenBatch
from weir_router.streams import token_batch

Row = tuple[int, int, int, tuple[int, ...], tuple[float, ...] | None]


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """(handle, output index, first token index, token ids, log-probabilities)."""
    result = []
    for _ in range(draw(st.integers(0, 6))):
        ids = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
        logprobs = tuple(-float(i) for i in range(len(ids))) if draw(st.booleans()) else None
        result.append((draw(st.integers(1, 3)), draw(st.integers(0, 1)), draw(st.integers(0, 9)), ids, logprobs))
    return result


def pack(rows: list[Row]) -> TokenBatch:
    batch = TokenBatch()
    for index, (handle, output_index, first, ids, logprobs) in enumerate(rows):
        batch.handles.append(handle)
        batch.output_indexes.append(output_index)
        batch.first_token_indexes.append(first)
        batch.token_counts.append(len(ids))
        batch.token_ids.extend(ids)
        if logprobs is not None:
            batch.logprobs.append(RowLogprobs(row=index, logprobs=logprobs))
    return batch


def unpack(batch: TokenBatch) -> list[Row]:
    assert token_batch.is_well_formed(batch)
    logprobs = {entry.row: tuple(entry.logprobs) for entry in batch.logprobs}
    starts = [0, *accumulate(batch.token_counts)]
    return [
        (handle, output_index, first, tuple(batch.token_ids[starts[i] : starts[i + 1]]), logprobs.get(i))
        for i, (handle, output_index, first) in enumerate(
            zip(batch.handles, batch.output_indexes, batch.first_token_indexes, strict=True)
        )
    ]


@given(rows(), rows())
def test_appending_is_concatenation(first: list[Row], second: list[Row]) -> None:
    batch, more = pack(first), pack(second)
    token_batch.append(batch, more)
    assert unpack(batch) == first + second
    assert unpack(more) == second, "what was appended is not ours to change"


@given(rows(), st.randoms(use_true_random=False))
def test_splitting_gives_each_key_its_rows_in_order(all_rows: list[Row], random: object) -> None:
    keys = [None if row[0] == 3 else "ab"[row[0] - 1] for row in all_rows]
    parts = token_batch.split(pack(all_rows), keys)
    for key in ("a", "b"):
        wanted = [row for row, its in zip(all_rows, keys, strict=True) if its == key]
        assert (unpack(parts[key]) if key in parts else []) == wanted


@pytest.mark.parametrize(
    "batch",
    [
        TokenBatch(handles=[1]),
        TokenBatch(handles=[1], output_indexes=[0], first_token_indexes=[0], token_counts=[2], token_ids=[5]),
        TokenBatch(handles=[1], output_indexes=[0], first_token_indexes=[0], token_counts=[1], token_ids=[5, 6]),
        TokenBatch(logprobs=[RowLogprobs(row=0)]),
    ],
)
def test_columns_that_disagree_are_seen(batch: TokenBatch) -> None:
    assert not token_batch.is_well_formed(batch)
