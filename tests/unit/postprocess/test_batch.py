from __future__ import annotations

import pytest

from weir.inference.v1.output_pb2 import RowLogprobs, TokenBatch
from weir.postprocess.v1.postprocess_pb2 import Finish
from weir_chassis.errors import InvalidArgument
from weir_postprocess.batch import Row, rows_that_end_without_text, token_rows


def batch(**changes: object) -> TokenBatch:
    columns: dict[str, object] = {
        "handles": [7, 8],
        "output_indexes": [0, 1],
        "first_token_indexes": [4, 0],
        "token_counts": [2, 1],
        "token_ids": [10, 11, 12],
    }
    return TokenBatch(**{**columns, **changes})  # type: ignore[arg-type]  # as the parameters name them


def test_rows() -> None:
    logprobs = RowLogprobs(row=1, logprobs=[-1])
    assert token_rows(batch(logprobs=[logprobs])) == [Row(7, 0, 4, [10, 11], None), Row(8, 1, 0, [12], logprobs)]
    assert token_rows(TokenBatch()) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"output_indexes": [0]}, "tokens.output_indexes"),
        ({"first_token_indexes": [0, 1, 2]}, "tokens.first_token_indexes"),
        ({"token_counts": []}, "tokens.token_counts"),
        ({"token_counts": [2, 2]}, "tokens.token_ids"),
        ({"token_ids": [10]}, "tokens.token_ids"),
        ({"logprobs": [RowLogprobs(row=2)]}, "tokens.logprobs"),
        ({"logprobs": [RowLogprobs(row=1), RowLogprobs(row=1)]}, "tokens.logprobs"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        token_rows(batch(**changes))
    assert refused.value.field == field


def test_the_last_row_of_an_output_is_the_one_that_ends_it() -> None:
    rows = [Row(7, 0, 0, [1], None), Row(8, 0, 0, [1], None), Row(7, 0, 1, [2], None), Row(7, 0, 2, [], None)]
    ends = Finish(handle=7, ends_with_stop_token=True)
    assert rows_that_end_without_text(rows, [ends, Finish(handle=8)]) == {2}
    assert rows_that_end_without_text(rows, [Finish(handle=9, ends_with_stop_token=True)]) == frozenset()
