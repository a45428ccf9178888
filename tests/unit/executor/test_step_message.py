"""Steps come together in one message, and nothing of them is lost or doubled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.output_pb2 import FinishReason
from weir_executor.replies import to_finished
from weir_executor.step_message import StepMessage
from weir_executor.step_output import FinishReason as Reason
from weir_executor.step_output import TokenLogprobs, TokenOutput


def rows(message: pb.GenerateResponse) -> list[tuple[int, int, int, list[int]]]:
    batch, offset, found = message.tokens, 0, []
    for handle, index, first, count in zip(
        batch.handles, batch.output_indexes, batch.first_token_indexes, batch.token_counts, strict=True
    ):
        found.append((handle, index, first, list(batch.token_ids[offset : offset + count])))
        offset += count
    assert offset == len(batch.token_ids)
    return found


def test_an_empty_message_says_nothing() -> None:
    message = StepMessage()
    assert not message
    assert message.pack() == pb.GenerateResponse()


def test_rows_by_column() -> None:
    message = StepMessage()
    message.add_accepted(7)
    message.add_tokens(7, TokenOutput(1, 0, 4, (9, 8)))
    message.add_tokens(7, TokenOutput(1, 1, 0, (5,)))
    packed = message.pack()
    assert list(packed.accepted_handles) == [7]
    assert rows(packed) == [(7, 0, 4, [9, 8]), (7, 1, 0, [5])]
    assert message.size == 4


def test_steps_of_one_output_share_a_row() -> None:
    message = StepMessage()
    message.add_tokens(1, TokenOutput(1, 0, 4, (9,)))
    message.add_tokens(2, TokenOutput(2, 0, 0, (5,)))
    message.add_tokens(1, TokenOutput(1, 0, 5, (8, 7)))
    assert rows(message.pack()) == [(1, 0, 4, [9, 8, 7]), (2, 0, 0, [5])]


def test_a_gap_is_our_bug() -> None:
    message = StepMessage()
    message.add_tokens(1, TokenOutput(1, 0, 4, (9,)))
    with pytest.raises(AssertionError):
        message.add_tokens(1, TokenOutput(1, 0, 6, (8,)))


def test_logprobs_name_their_rows_and_merge_with_them() -> None:
    message = StepMessage()
    message.add_tokens(1, TokenOutput(1, 0, 0, (9,)))
    message.add_tokens(2, TokenOutput(2, 0, 0, (5,), (TokenLogprobs(-0.5, (5, 6), (-0.5, -1.5)),)))
    message.add_tokens(2, TokenOutput(2, 0, 1, (6,), (TokenLogprobs(-0.25, (6, 7), (-0.25, -2.0)),)))
    (logprobs,) = message.pack().tokens.logprobs
    assert logprobs.row == 1
    assert list(logprobs.logprobs) == [-0.5, -0.25]
    assert logprobs.top_count == 2
    assert list(logprobs.top_token_ids) == [5, 6, 6, 7]
    assert list(logprobs.top_logprobs) == [-0.5, -1.5, -0.25, -2.0]
    assert message.size == 3 + 2 * (1 + 2 * 2), "log-probabilities take room too"


def test_only_a_named_stop_token_is_told() -> None:
    output = TokenOutput(1, 0, 3, (2,), finish_reason=Reason.STOP, stop_token_id=2)
    assert to_finished(7, output, {2}).stop_token_id == 2
    unnamed = to_finished(7, output, set())
    assert not unnamed.HasField("stop_token_id")
    assert unnamed.finish_reason == FinishReason.FINISH_REASON_STOP


@given(
    steps=st.lists(st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 2)), st.integers(1, 4)), max_size=12),
    cut=st.integers(0, 12),
)
def test_however_steps_are_grouped_each_output_reads_the_same(
    steps: list[dict[tuple[int, int], int]], cut: int
) -> None:
    told: dict[tuple[int, int], list[int]] = {}
    sent: dict[tuple[int, int], int] = {}
    message = StepMessage()
    for number, step in enumerate([*steps, {}]):
        for (handle, index), count in step.items():
            first = sent.get((handle, index), 0)
            token_ids = tuple(range(first, first + count))
            message.add_tokens(handle, TokenOutput(handle, index, first, token_ids))
            sent[handle, index] = first + count
        if number == cut or number == len(steps):
            for handle, index, first, token_ids_read in rows(message.pack()):
                already = told.setdefault((handle, index), [])
                assert first == len(already)
                already += token_ids_read
            message = StepMessage()
    assert told == {output: list(range(count)) for output, count in sent.items()}
