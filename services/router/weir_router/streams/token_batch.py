"""Batches of tokens by column: joining and splitting them without looking at a token. Pure.

handles              [ 7,  9,  7]          row 2 is request 7's output 1, and its tokens
output_indexes       [ 0,  0,  1]          are the third part of `token_ids`
first_token_indexes  [ 4,  0,  4]
token_counts         [ 1,  2,  1]
token_ids            [11, 21, 22, 31]      logprobs: of the rows that asked, each naming its row
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

from weir.inference.v1.output_pb2 import TokenBatch

K = TypeVar("K")


def is_well_formed(batch: TokenBatch) -> bool:
    """Whether the columns agree. A peer could send anything."""
    rows = len(batch.handles)
    columns = (batch.output_indexes, batch.first_token_indexes, batch.token_counts)
    return (
        all(len(column) == rows for column in columns)
        and sum(batch.token_counts) == len(batch.token_ids)
        and all(entry.row < rows for entry in batch.logprobs)
    )


def append(batch: TokenBatch, more: TokenBatch) -> None:
    """Adds the rows of `more` at the end of `batch`."""
    rows, entries = len(batch.handles), len(batch.logprobs)
    batch.MergeFrom(more)
    if rows:
        for entry in batch.logprobs[entries:]:
            entry.row += rows


def split(batch: TokenBatch, keys: Sequence[K | None]) -> dict[K, TokenBatch]:
    """The rows of each key, in their order; `keys[i]` is the key of row i, and a row with None is left out."""
    assert len(keys) == len(batch.handles), (len(keys), len(batch.handles))
    starts = [0, *accumulate(batch.token_counts)]
    parts: dict[K, TokenBatch] = {}
    new_rows: dict[int, int] = {}
    for row, key in enumerate(keys):
        if key is None:
            continue
        part = parts.setdefault(key, TokenBatch())
        new_rows[row] = len(part.handles)
        _add_row(part, batch, row, starts[row])
    for entry in batch.logprobs:
        if (key := keys[entry.row]) is not None:
            added = parts[key].logprobs.add()
            added.CopyFrom(entry)
            added.row = new_rows[entry.row]
    return parts


def _add_row(part: TokenBatch, batch: TokenBatch, row: int, start: int) -> None:
    count = batch.token_counts[row]
    part.handles.append(batch.handles[row])
    part.output_indexes.append(batch.output_indexes[row])
    part.first_token_indexes.append(batch.first_token_indexes[row])
    part.token_counts.append(count)
    part.token_ids.extend(batch.token_ids[start : start + count])
