"""Wherever a client stopped, what it is given next is what it has not, and all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.router.retained.streams import delta, place, said, streams
from weir.inference.v1.stream_pb2 import Delta, ToolCallDelta
from weir.router.v1.router_pb2 import NextToken, ResumeRequest
from weir_chassis.errors import InvalidArgument
from weir_router.delivery import Event
from weir_router.retained.cut import Cut, Place, places_of


@given(streams(), st.data())
def test_the_rest_follows_on_what_the_client_has(
    stream: tuple[dict[int, list[int]], list[Event]], data: st.DataObject
) -> None:
    outputs, events = stream
    had = {index: ids[: data.draw(st.integers(0, len(ids)))] for index, ids in outputs.items()}
    cut = Cut({index: place(ids) for index, ids in had.items()})
    rest = [cut.rest(event) for event in events if isinstance(event, Delta)]
    assert said([each for each in rest if each is not None], had) == said(events)


@given(streams(max_outputs=1), st.integers(0, 12))
def test_without_a_count_of_bytes_the_text_is_that_of_whole_deltas(
    stream: tuple[dict[int, list[int]], list[Event]], num_deltas: int
) -> None:
    """As a client has it that was sent these very deltas."""
    deltas = [event for event in stream[1] if isinstance(event, Delta)]
    had, rest = deltas[:num_deltas], deltas[num_deltas:]
    cut = Cut({0: Place(sum(len(each.token_ids) for each in had), None)})
    assert [each for each in map(cut.rest, deltas) if each is not None] == rest


def test_a_cut_within_a_delta_brings_no_text_unless_it_is_told_how_much_there_is() -> None:
    whole = Delta(first_token_index=4, token_ids=[1, 2, 3], text="weir")
    assert Cut({0: Place(6, None)}).rest(whole) == Delta(first_token_index=6, token_ids=[3])
    assert Cut({0: Place(6, 3)}).rest(whole) == Delta(first_token_index=6, token_ids=[3], text="r")


def test_text_that_comes_without_tokens_comes_once() -> None:
    deltas = [delta(0, 0, [0, 1]), Delta(first_token_index=2, text="\ufffd")]
    size = len(deltas[0].text.encode())
    for had, rest in ((Place(2, size), deltas[1:]), (Place(2, size + 3), []), (Place(2, None), deltas[1:])):
        cut = Cut({0: had})
        assert [each for each in map(cut.rest, deltas) if each is not None] == rest


def test_what_the_client_has_is_counted_on_from_what_was_dropped() -> None:
    cut = Cut({0: Place(3, 12)})
    assert cut.skip({0: Place(2, 10)})
    assert not cut.skip({0: Place(4, 13)})
    cut = Cut({0: Place(3, 12)})
    cut.skip({0: Place(2, 10)})
    assert cut.rest(Delta(first_token_index=2, token_ids=[7, 8], text="abcd")) == Delta(
        first_token_index=3, token_ids=[8], text="cd"
    )


def test_a_worker_that_tells_no_tokens_is_cut_by_text_and_tool_calls() -> None:
    call = ToolCallDelta(index=0, id="c", name="f")
    deltas = [
        Delta(text="weir"),
        Delta(tool_calls=[call]),
        Delta(tool_calls=[ToolCallDelta(arguments_json='{"a"')]),
        Delta(tool_calls=[ToolCallDelta(arguments_json=": 1}")]),
        Delta(text=" and more"),
    ]
    for had, rest in (
        (Place(0, 0), deltas),
        (Place(0, 4), deltas[1:]),
        (Place(0, 4, 4), deltas[3:]),
        (Place(0, 4, 8), deltas[4:]),
        (Place(0, 7, 8), [Delta(text="d more")]),
        (Place(0, 13, 8), []),
    ):
        cut = Cut({0: had})
        assert [each for each in map(cut.rest, deltas) if each is not None] == rest, had
    assert Cut({0: Place(0, 4)}).skip({0: Place(0, 4)})
    assert not Cut({0: Place(0, 3)}).skip({0: Place(0, 4)})


def test_a_place_within_a_character_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"next\.text_bytes"):
        Cut({0: Place(1, 1)}).rest(Delta(token_ids=[1, 2], text="é"))


def test_places_are_those_of_the_request() -> None:
    request = ResumeRequest(next=[NextToken(output_index=2, first_token_index=5), NextToken(text_bytes=0)])
    assert places_of(request) == {2: Place(5, None), 0: Place(0, 0)}
