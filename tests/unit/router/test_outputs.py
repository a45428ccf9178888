"""Which outputs are drawn and waited for, and how a client is told that one is over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished
from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.stream_pb2 import OutputFinished
from weir.postprocess.v1.postprocess_pb2 import PostprocessOutputFinished
from weir_router.outputs import Outputs, finished_of

STOP, LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH


@given(st.integers(1, 8), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_an_output_is_on_one_side_or_the_other(n: int, drawn: set[int], written: set[int], ended: set[int]) -> None:
    outputs = Outputs(n)
    outputs.drawing -= drawn
    outputs.unfinished -= written
    outputs.end(ended)
    of_it = set(range(n))
    assert set(outputs.over()) == of_it & (drawn | ended) == of_it - outputs.drawing
    assert set(outputs.told()) == of_it & (written | ended) == of_it - outputs.unfinished
    assert outputs.over() == sorted(outputs.over()), "in order, so that a run can be repeated"


@pytest.mark.parametrize(
    ("row", "drawn", "expected"),
    [
        (
            PostprocessOutputFinished(output_index=1, finish_reason=STOP, stop="x"),
            ExecutorOutputFinished(output_index=1, finish_reason=STOP, stop_token_id=9),
            OutputFinished(output_index=1, finish_reason=STOP, stop="x"),
        ),
        (
            PostprocessOutputFinished(finish_reason=STOP),
            ExecutorOutputFinished(finish_reason=STOP, stop_token_id=0),
            OutputFinished(finish_reason=STOP, stop_token_id=0),
        ),
        (
            PostprocessOutputFinished(finish_reason=STOP),
            ExecutorOutputFinished(finish_reason=STOP),
            OutputFinished(finish_reason=STOP),
        ),
        (PostprocessOutputFinished(finish_reason=STOP), None, OutputFinished(finish_reason=STOP)),
        (
            PostprocessOutputFinished(finish_reason=LENGTH),
            ExecutorOutputFinished(finish_reason=STOP, stop_token_id=9),
            OutputFinished(finish_reason=LENGTH),
        ),
    ],
    ids=["a stop string found first", "a stop token", "its guide had no more", "never drawn to its end", "length"],
)
def test_a_client_is_told_what_stopped_an_output(
    row: PostprocessOutputFinished, drawn: ExecutorOutputFinished | None, expected: OutputFinished
) -> None:
    assert finished_of(row, drawn) == expected
