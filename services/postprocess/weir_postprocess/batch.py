"""The rows of a token batch, out of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from weir.inference.v1.output_pb2 import RowLogprobs, TokenBatch
from weir.postprocess.v1.postprocess_pb2 import Finish
from weir_chassis.errors import InvalidArgument


class Row(NamedTuple):
    handle: int
    output_index: int
    first_token_index: int
    token_ids: Sequence[int]
    logprobs: RowLogprobs | None


def token_rows(batch: TokenBatch) -> list[Row]:
    """Raises InvalidArgument when the columns do not fit each other: then no row can be trusted to be its request's."""
    count = len(batch.handles)
    for name in ("output_indexes", "first_token_indexes", "token_counts"):
        if len(getattr(batch, name)) != count:
            raise InvalidArgument(f"tokens.{name}", f"{len(getattr(batch, name))} entries for {count} handles")
    if sum(batch.token_counts) != len(batch.token_ids):
        raise InvalidArgument(
            "tokens.token_ids", f"{len(batch.token_ids)}; token_counts add to {sum(batch.token_counts)}"
        )
    logprobs = _logprobs_by_row(batch)
    rows, start = [], 0
    columns = zip(batch.handles, batch.output_indexes, batch.first_token_indexes, batch.token_counts, strict=True)
    for i, (handle, output_index, first_token_index, length) in enumerate(columns):
        token_ids = batch.token_ids[start : start + length]
        rows.append(Row(handle, output_index, first_token_index, token_ids, logprobs.get(i)))
        start += length
    return rows


def rows_that_end_without_text(rows: Sequence[Row], finishes: Iterable[Finish]) -> frozenset[int]:
    """Indexes of the rows whose last token only ended its output.

    An executor says so in the message that brings the token. Said later it changes nothing: the text has gone out.
    """
    ending = {(finish.handle, finish.output_index) for finish in finishes if finish.ends_with_stop_token}
    if not ending:
        return frozenset()
    last = {(row.handle, row.output_index): i for i, row in enumerate(rows) if row.token_ids}
    return frozenset(last[key] for key in ending if key in last)


def _logprobs_by_row(batch: TokenBatch) -> Mapping[int, RowLogprobs]:
    rows = {logprobs.row: logprobs for logprobs in batch.logprobs}
    if len(rows) != len(batch.logprobs) or (rows and max(rows) >= len(batch.handles)):
        raise InvalidArgument("tokens.logprobs", f"each is of one of {len(batch.handles)} rows, and no row has two")
    return rows
