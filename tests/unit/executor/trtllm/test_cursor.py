from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.trtllm.results import CompletionOutput, Logprob
from weir_executor.step_output import FinishReason, TokenLogprobs
from weir_executor.trtllm.cursor import Cursor

END = 2


@given(st.lists(st.integers(3, 99), max_size=20), st.data())
def test_what_is_new_is_told_once_however_often_one_looks(tokens: list[int], data: st.DataObject) -> None:
    cursor, output, told = Cursor(END, None), CompletionOutput(), list[int]()
    for token in tokens:
        output.token_ids.append(token)
        if data.draw(st.booleans()):
            told += cursor.advance(output).token_ids
    told += cursor.advance(output).token_ids
    assert told == tokens


def test_what_the_engine_takes_back_stays_said() -> None:
    cursor, output = Cursor(END, None), CompletionOutput(token_ids=[5, 6, 7])
    assert cursor.advance(output).token_ids == [5, 6, 7]
    output.token_ids, output.finish_reason, output.stop_reason = [5], "stop", 6
    last = cursor.advance(output)
    assert (last.token_ids, last.finish_reason, last.stop_token_id) == ([], FinishReason.STOP, 6)
    output.token_ids = [5, 6, 7]
    assert cursor.advance(output).token_ids == [], "nor is it said again"


@pytest.mark.parametrize(
    ("reason", "stop_reason", "found"),
    [
        ("stop", None, (FinishReason.STOP, END)),
        ("stop", 77, (FinishReason.STOP, 77)),
        ("length", None, (FinishReason.LENGTH, None)),
        ("cancelled", None, (FinishReason.CANCELLED, None)),
        (None, None, (None, None)),
    ],
)
def test_how_it_ended(
    reason: str | None, stop_reason: int | None, found: tuple[FinishReason | None, int | None]
) -> None:
    output = CompletionOutput(token_ids=[5], finish_reason=reason, stop_reason=stop_reason)
    news = Cursor(END, None).advance(output)
    assert (news.finish_reason, news.stop_token_id) == found


def test_an_end_that_was_never_asked_for_is_a_fault() -> None:
    with pytest.raises(ValueError, match="timeout"):
        Cursor(END, None).advance(CompletionOutput(finish_reason="timeout"))


def test_log_probabilities_are_of_the_drawn_token_and_as_many_as_asked() -> None:
    told = {7: Logprob(-0.5, 1), 8: Logprob(-1.0, 2), 5: Logprob(-3.0, 9)}
    output = CompletionOutput(token_ids=[5], logprobs=[told])
    (two,) = Cursor(END, 2).advance(output).logprobs
    assert two == TokenLogprobs(-3.0, [7, 8], [-0.5, -1.0])
    (none,) = Cursor(END, 0).advance(output).logprobs
    assert none == TokenLogprobs(-3.0, [], [])
    assert Cursor(END, None).advance(output).logprobs == []
    forbidden = {7: Logprob(0.25, 1), 5: Logprob(-math.inf, 9), 8: Logprob(math.nan)}
    (found,) = Cursor(END, 3).advance(CompletionOutput(token_ids=[5], logprobs=[forbidden])).logprobs
    assert found == TokenLogprobs(-9999.0, [7, 5, 8], [0.0, -9999.0, -9999.0])
    simple = CompletionOutput(token_ids=[5], logprobs=[-0.25])  # type: ignore[list-item]  # newer versions may
    assert Cursor(END, 1).advance(simple).logprobs == [TokenLogprobs(-0.25)]
