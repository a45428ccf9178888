"""The open requests of one stream, message by message."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.postprocess.vocabularies import PROPERTY, byte_level
from weir.inference.v1.output_pb2 import FinishReason, RowLogprobs, TokenBatch
from weir.postprocess.v1.postprocess_pb2 import (
    Finish,
    Open,
    OpenedOutput,
    PostprocessOutputFinished,
    PostprocessRequest,
    PostprocessResponse,
)
from weir_chassis.errors import InvalidArgument, WeirError, reason_name
from weir_chassis.status import from_failure
from weir_postprocess.session import Changes, Session

STOP, LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH
CANCELLED = FinishReason.FINISH_REASON_CANCELLED
MODEL, MAX_OPEN = "weir", 4


def session(*opens: Open) -> Session:
    made = Session({MODEL: byte_level().vocabulary}, MAX_OPEN)
    if opens:
        assert made.apply(PostprocessRequest(opens=opens)) is None
    return made


def opened(handle: int = 1, n: int = 1, **fields: object) -> Open:
    return Open(handle=handle, model=MODEL, n=n, **fields)  # type: ignore[arg-type]  # fields of Open


def ids(text: str) -> list[int]:
    """One token for each character, so that tests can count."""
    characters = [byte_level().ids(character) for character in text]
    return [token_id for character in characters for token_id in character]


def tokens(*rows: tuple[int, int, int, Sequence[int]], logprobs: Sequence[RowLogprobs] = ()) -> TokenBatch:
    """Rows of (handle, output index, first token index, token ids)."""
    return TokenBatch(
        handles=[row[0] for row in rows],
        output_indexes=[row[1] for row in rows],
        first_token_indexes=[row[2] for row in rows],
        token_counts=[len(row[3]) for row in rows],
        token_ids=[token_id for row in rows for token_id in row[3]],
        logprobs=logprobs,
    )


def says(response: PostprocessResponse | None) -> list[tuple[int, int, int, str]]:
    """The deltas as (handle, output index, first token index, text)."""
    if response is None:
        return []
    rows = zip(response.handles, response.deltas, strict=True)
    return [(handle, delta.output_index, delta.first_token_index, delta.text) for handle, delta in rows]


def failed(response: PostprocessResponse | None) -> list[tuple[int, WeirError]]:
    return [(row.handle, from_failure(row.failure)) for row in (response.failed if response else ())]


def reasons(response: PostprocessResponse | None) -> list[tuple[int, str]]:
    return [(handle, reason_name(error.reason)) for handle, error in failed(response)]


def test_many_outputs_in_one_message() -> None:
    made = session(opened(1, n=2), opened(2))
    response = made.apply(
        PostprocessRequest(tokens=tokens((2, 0, 0, ids("on")), (1, 1, 0, ids("a")), (1, 0, 0, ids("b"))))
    )
    assert says(response) == [(2, 0, 0, "on"), (1, 1, 0, "a"), (1, 0, 0, "b")]
    assert response is not None
    assert not response.finished


def test_nothing_to_say_is_no_message() -> None:
    made = session(opened(stop=["END"]))
    assert made.apply(PostprocessRequest(tokens=tokens((1, 0, 0, ids("EN"))))) is None
    assert made.apply(PostprocessRequest()) is None


def test_two_rows_of_one_output_make_one_delta() -> None:
    made = session(opened())
    assert says(made.apply(PostprocessRequest(tokens=tokens((1, 0, 0, ids("a")), (1, 0, 1, ids("b")))))) == [
        (1, 0, 0, "ab")
    ]


@pytest.mark.parametrize("reason", [STOP, LENGTH, CANCELLED])
def test_a_finish_releases_what_is_held_and_forgets(reason: FinishReason.ValueType) -> None:
    made = session(opened(stop=["END"]))
    made.apply(PostprocessRequest(tokens=tokens((1, 0, 0, ids("EN")))))
    response = made.apply(PostprocessRequest(finishes=[Finish(handle=1, finish_reason=reason)]))
    assert says(response) == [(1, 0, 0, "EN")]
    assert response is not None
    assert list(response.finished) == [PostprocessOutputFinished(handle=1, finish_reason=reason)]
    assert not made.handles


def test_a_stop_string_finishes_whatever_the_executor_says() -> None:
    made = session(opened(stop=["END", "x"]))
    response = made.apply(
        PostprocessRequest(tokens=tokens((1, 0, 0, ids("a END b"))), finishes=[Finish(handle=1, finish_reason=LENGTH)])
    )
    assert says(response) == [(1, 0, 0, "a ")]
    assert response is not None
    assert list(response.deltas[0].token_ids) == ids("a END")
    assert list(response.finished) == [PostprocessOutputFinished(handle=1, finish_reason=STOP, stop="END")]


def test_the_other_outputs_of_a_request_go_on_after_a_stop_string() -> None:
    made = session(opened(n=2, stop=["."]))
    made.apply(PostprocessRequest(tokens=tokens((1, 0, 0, ids("a.")), (1, 1, 0, ids("a")))))
    response = made.apply(PostprocessRequest(tokens=tokens((1, 0, 2, ids("b")), (1, 1, 1, ids("b")))))
    assert says(response) == [(1, 1, 1, "b")]
    assert list(made.handles) == [1]


def test_a_stop_token_is_counted_and_has_no_text() -> None:
    made = session(opened(stop=["b"]))
    response = made.apply(
        PostprocessRequest(
            tokens=tokens((1, 0, 0, ids("ab"))),
            finishes=[Finish(handle=1, finish_reason=STOP, ends_with_stop_token=True)],
        )
    )
    assert says(response) == [(1, 0, 0, "a")]
    assert response is not None
    assert list(response.deltas[0].token_ids) == ids("ab")
    assert not response.finished[0].HasField("stop")


def test_logprobs_come_with_their_tokens() -> None:
    made = session(opened())
    logprobs = [RowLogprobs(row=0, logprobs=[-1, -2], top_count=1, top_token_ids=ids("on"), top_logprobs=[-1, -1])]
    response = made.apply(PostprocessRequest(tokens=tokens((1, 0, 0, ids("ab")), logprobs=logprobs)))
    assert response is not None
    entries = response.deltas[0].logprobs
    assert [(entry.token, entry.logprob, entry.top[0].token) for entry in entries] == [
        (b"a", -1, b"o"),
        (b"b", -2, b"n"),
    ]


def test_resumed_outputs_begin_after_their_tokens() -> None:
    made = session(opened(n=2, stop=["END"], resumed_outputs=[OpenedOutput(output_index=1, token_ids=ids("so far E"))]))
    response = made.apply(PostprocessRequest(tokens=tokens((1, 0, 0, ids("a")), (1, 1, 8, ids("ND")))))
    assert says(response) == [(1, 0, 0, "a"), (1, 1, 8, "")]
    assert response is not None
    assert response.finished[0].stop == "END"


@pytest.mark.parametrize(
    ("wrong", "reason", "said"),
    [
        (Open(handle=9, model="other", n=1), "MODEL_NOT_FOUND", "'other' is not served here; known: weir"),
        (opened(1), "ALREADY_EXISTS", "handle 1 is that of an open request"),
        (opened(9, n=0), "INVALID_ARGUMENT", "n: 0 is not in [1, 16]"),
        (opened(9, n=17), "INVALID_ARGUMENT", "n: 17 is not in [1, 16]"),
        (opened(9, stop=[""]), "INVALID_ARGUMENT", "stop[0]: 0 bytes"),
        (opened(9, stop=["ok", "x" * 1025]), "INVALID_ARGUMENT", "stop[1]: 1025 bytes"),
        (opened(9, stop=["x"] * 17), "INVALID_ARGUMENT", "17 stop strings, the limit is 16"),
        (opened(9, resumed_outputs=[OpenedOutput(output_index=1)]), "INVALID_ARGUMENT", "resumed_outputs"),
        (opened(9, resumed_outputs=[OpenedOutput(), OpenedOutput()]), "INVALID_ARGUMENT", "resumed_outputs"),
        (opened(9, resumed_outputs=[OpenedOutput(token_ids=[2**31])]), "INVALID_ARGUMENT", "token id 2147483648"),
    ],
)  # fmt: skip
def test_a_wrong_open_fails_alone(wrong: Open, reason: str, said: str) -> None:
    made = session(opened(1))
    response = made.apply(PostprocessRequest(opens=[wrong, opened(2)], tokens=tokens((1, 0, 0, ids("a")))))
    assert reasons(response) == [(wrong.handle, reason)]
    assert said in failed(response)[0][1].message
    assert says(response) == [(1, 0, 0, "a")]
    assert list(made.handles) == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (PostprocessRequest(tokens=tokens((2, 0, 0, [2**31]))), "token id 2147483648 is not below"),
        (PostprocessRequest(tokens=tokens((2, 1, 0, [1]))), "output_index: 1 is not below n"),
        (PostprocessRequest(tokens=tokens((2, 0, 1, [1]))), "1; the next token of this output is 0"),
        (PostprocessRequest(tokens=tokens((2, 0, 0, [1]), (2, 0, 0, [1]))), "0; the next token of this output is 1"),
        (PostprocessRequest(tokens=tokens((2, 0, 0, [1]), logprobs=[RowLogprobs()])), "0 for 1 tokens"),
        (
            PostprocessRequest(
                tokens=tokens((2, 0, 0, [1]), (2, 0, 1, [1]), logprobs=[RowLogprobs(row=1, logprobs=[-1])])
            ),
            "for all of its rows or for none",
        ),
        (PostprocessRequest(finishes=[Finish(handle=2, output_index=1, finish_reason=STOP)]), "output_index: 1"),
        (PostprocessRequest(finishes=[Finish(handle=2)]), "finish_reason: 0 is none"),
    ],
)
def test_a_wrong_row_fails_its_request_alone(wrong: PostprocessRequest, said: str) -> None:
    made = session(opened(1), opened(2))
    response = made.apply(wrong)
    assert reasons(response) == [(2, "INVALID_ARGUMENT")]
    assert said in failed(response)[0][1].message
    assert says(response) == []
    assert list(made.handles) == [1]
    assert made.apply(PostprocessRequest(tokens=tokens((2, 0, 0, ids("a"))))) is None


def test_columns_that_do_not_fit_change_nothing() -> None:
    made = session(opened(1))
    with pytest.raises(InvalidArgument):
        made.apply(PostprocessRequest(opens=[opened(2)], tokens=TokenBatch(handles=[1])))
    assert list(made.handles) == [1]


def test_what_is_unknown_or_finished_is_ignored() -> None:
    made = session(opened(1, n=2))
    finish = Finish(handle=1, finish_reason=STOP)
    made.apply(PostprocessRequest(finishes=[finish]))
    late = PostprocessRequest(
        tokens=tokens((1, 0, 0, ids("a")), (5, 0, 0, ids("a"))),
        finishes=[finish, finish, Finish(handle=5, finish_reason=STOP)],
        closed_handles=[5, 6],
    )
    assert made.apply(late) is None
    assert list(made.handles) == [1]


def test_a_closed_request_says_nothing_more_and_its_handle_is_free() -> None:
    made = session(opened(1))
    assert made.apply(PostprocessRequest(tokens=tokens((1, 0, 0, ids("a"))), closed_handles=[1])) is None
    assert not made.handles
    assert made.apply(PostprocessRequest(opens=[opened(1)])) is None
    assert says(made.apply(PostprocessRequest(tokens=tokens((1, 0, 0, ids("b")))))) == [(1, 0, 0, "b")]


def test_open_requests_are_bounded() -> None:
    made = session(*(opened(handle) for handle in range(MAX_OPEN)))
    assert reasons(made.apply(PostprocessRequest(opens=[opened(9)]))) == [(9, "OVERLOADED")]
    assert made.apply(PostprocessRequest(closed_handles=[0])) is None
    assert made.apply(PostprocessRequest(opens=[opened(9)])) is None


def test_a_draining_session_opens_nothing_and_goes_on() -> None:
    made = session(opened(1))
    made.draining = True
    response = made.apply(PostprocessRequest(opens=[opened(2)], tokens=tokens((1, 0, 0, ids("a")))))
    assert reasons(response) == [(2, "DRAINING")]
    assert says(response) == [(1, 0, 0, "a")]


def test_changes_are_told_once() -> None:
    made = session(opened(1), opened(2))
    made.apply(PostprocessRequest(opens=[opened(3)], closed_handles=[1, 3]))
    assert made.take_changes() == Changes([1, 2, 3], [1, 3])
    assert made.take_changes() == Changes([], [])


@st.composite
def messages(draw: st.DrawFn) -> PostprocessRequest:
    handles = st.integers(1, 3)
    rows = draw(st.lists(st.tuples(handles, st.integers(0, 2), st.integers(0, 3), st.lists(st.sampled_from(ids("aEND")), max_size=3)), max_size=4))  # fmt: skip  # noqa: E501
    finishes = st.builds(
        Finish,
        handle=handles,
        output_index=st.integers(0, 2),
        finish_reason=st.sampled_from([0, STOP, LENGTH]),
        ends_with_stop_token=st.booleans(),
    )
    opens = st.builds(opened, handles, st.integers(0, 3), stop=st.sampled_from([[], ["END"], [""]]))
    return PostprocessRequest(
        opens=draw(st.lists(opens, max_size=3)),
        tokens=tokens(*rows),
        finishes=draw(st.lists(finishes, max_size=2)),
        closed_handles=draw(st.lists(handles, max_size=2)),
    )


@PROPERTY
@given(st.lists(messages(), max_size=12))
def test_any_messages_keep_the_books(sent: list[PostprocessRequest]) -> None:
    made, open_now = session(), set[int]()
    next_index: dict[tuple[int, int], int] = {}
    for message in sent:
        response = made.apply(message)
        made.check_integrity()
        changes = made.take_changes()
        for key in list(next_index):
            if key[0] in changes.opened:
                del next_index[key]
        for handle, index, first, _ in says(response):
            assert first == next_index.get((handle, index), 0)
        for handle, delta in zip(response.handles, response.deltas, strict=True) if response else ():
            next_index[handle, delta.output_index] = delta.first_token_index + len(delta.token_ids)
        open_now = (open_now | set(changes.opened)) - set(changes.forgotten)
        assert open_now == set(made.handles)
