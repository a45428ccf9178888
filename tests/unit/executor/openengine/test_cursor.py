from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.openengine.v1 import openengine_pb2 as pb
from weir_executor.openengine.cursor import BadAnswerError, Cursor
from weir_executor.step_output import FinishReason, TokenLogprobs

STOP, EOS = 9, 2


def cursor(**fields: object) -> Cursor:
    told: dict[str, object] = {
        "stop_token_ids": frozenset({STOP, EOS}),
        "min_tokens": 0,
        "max_tokens": 100,
        "resumed": 0,
        "top": None,
        "vocab_size": 320,
    }
    return Cursor(**{**told, **fields})  # type: ignore[arg-type]


def tokens(*token_ids: int, index: int = 0) -> pb.GenerateResponse:
    infos = [pb.TokenInfo(token_id=each) for each in token_ids]
    return pb.GenerateResponse(token=pb.TokenOutput(output_index=index, tokens=infos))


def finished(reason: pb.FinishReason.ValueType, **match: int) -> pb.GenerateResponse:
    stop_match = pb.StopMatch(**match) if match else None  # type: ignore[arg-type]
    return pb.GenerateResponse(finished=pb.GenerationFinished(output_index=0, reason=reason, stop_match=stop_match))


@given(st.lists(st.lists(st.integers(10, 319), max_size=5), max_size=12))
def test_deltas_are_told_on_as_they_come_each_once(batches: list[list[int]]) -> None:
    one, told = cursor(), list[int]()
    for batch in batches:
        told += one.advance(tokens(*batch)).token_ids
    assert told == [each for batch in batches for each in batch]


def test_it_ends_with_its_first_stop_token_whatever_comes_after() -> None:
    one = cursor()
    news = one.advance(tokens(10, STOP, 11))
    assert (list(news.token_ids), news.finish_reason, news.stop_token_id) == ([10, STOP], FinishReason.STOP, STOP)
    assert one.over
    assert not one.advance(tokens(12)).token_ids
    assert one.advance(finished(pb.FINISH_REASON_STOP, stop_token_id=STOP)).finish_reason is None, "it is said once"


def test_it_is_never_longer_than_was_asked_and_resumed_tokens_count() -> None:
    news = cursor(max_tokens=5, resumed=3).advance(tokens(10, 11, 12))
    assert (list(news.token_ids), news.finish_reason) == ([10, 11], FinishReason.LENGTH)


def test_a_stop_token_before_min_tokens_is_a_token() -> None:
    one = cursor(min_tokens=2)
    assert one.advance(tokens(STOP, STOP)).finish_reason is None
    assert one.advance(tokens(STOP)).finish_reason is FinishReason.STOP


@pytest.mark.parametrize("kind", ["stop_token_id", "eos_token_id"])
def test_a_stop_token_that_the_server_keeps_to_itself_is_emitted(kind: str) -> None:
    one = cursor()
    one.advance(tokens(10))
    news = one.advance(finished(pb.FINISH_REASON_STOP, **{kind: 7}))
    assert (list(news.token_ids), news.finish_reason, news.stop_token_id) == ([7], FinishReason.STOP, 7)


def test_an_end_that_only_the_server_knows_is_not_emitted_twice() -> None:
    one = cursor()
    one.advance(tokens(10, 7))
    news = one.advance(finished(pb.FINISH_REASON_STOP, eos_token_id=7))
    assert (list(news.token_ids), news.finish_reason, news.stop_token_id) == ([], FinishReason.STOP, 7)


def test_one_whose_log_probability_is_wanted_is_not_emitted_without() -> None:
    news = cursor(top=0).advance(finished(pb.FINISH_REASON_STOP, stop_token_id=STOP))
    assert (list(news.token_ids), news.stop_token_id) == ([], STOP)


@pytest.mark.parametrize(
    ("reason", "ours"),
    [
        (pb.FINISH_REASON_LENGTH, FinishReason.LENGTH),
        (pb.FINISH_REASON_CANCELLED, FinishReason.CANCELLED),
        (pb.FINISH_REASON_STOP, FinishReason.STOP),
    ],
)
def test_how_it_ended(reason: pb.FinishReason.ValueType, ours: FinishReason) -> None:
    news = cursor().advance(finished(reason))
    assert (list(news.token_ids), news.finish_reason, news.stop_token_id) == ([], ours, None)


@pytest.mark.parametrize(
    "told",
    [
        tokens(320),
        tokens(10, index=1),
        finished(pb.FINISH_REASON_STOP, stop_token_id=320),
        finished(pb.FINISH_REASON_UNSPECIFIED),
        finished(99),  # type: ignore[arg-type]
    ],
    ids=["a token of another vocabulary", "another output", "its stop", "no reason", "an unknown reason"],
)
def test_what_no_server_of_this_model_says(told: pb.GenerateResponse) -> None:
    with pytest.raises(BadAnswerError):
        cursor().advance(told)


def test_what_is_neither_is_passed_over() -> None:
    one = cursor()
    assert not one.advance(pb.GenerateResponse(prompt=pb.PromptOutput())).token_ids
    assert not one.advance(pb.GenerateResponse()).token_ids
    assert not one.over


def info(token_id: int, logprob: float | None, *candidates: tuple[int, float]) -> pb.GenerateResponse:
    best = [pb.LogProb(token_id=each, logprob=value) for each, value in candidates]
    told = pb.TokenInfo(token_id=token_id, logprob=logprob, candidates=best)
    return pb.GenerateResponse(token=pb.TokenOutput(output_index=0, tokens=[told]))


def test_log_probabilities_are_the_best_as_many_as_were_asked_and_none_is_above_certainty() -> None:
    news = cursor(top=2).advance(info(10, 1e-9, (12, -3.0), (10, 1e-9), (11, -1.0)))
    assert news.logprobs == [TokenLogprobs(0.0, [10, 11], [0.0, -1.0])]


@pytest.mark.parametrize("told", [info(10, None, (10, -1.0)), info(10, -1.0)], ids=["its own", "its candidates"])
def test_a_log_probability_that_is_missing_is_no_zero(told: pb.GenerateResponse) -> None:
    with pytest.raises(BadAnswerError):
        cursor(top=1).advance(told)
