from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.postprocess.vocabularies import PROPERTY
from weir_chassis.errors import InvalidArgument
from weir_postprocess.stop import MAX_STOP_BYTES, MAX_STOPS, START, Match, StopStrings, check_stops, stop_strings

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=5)
TEXT = st.text("abc", max_size=20)


def first_match(stops: list[str], text: str) -> Match | None:
    """The definition: the shortest beginning of the text that ends with a stop string, and the longest such."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return Match(end, max(found, key=len))
    return None


def longest_beginning(stops: list[str], text: str) -> int:
    return max(size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size]))


@PROPERTY
@given(STOPS, TEXT)
def test_finds_the_match_that_ends_first(stops: list[str], text: str) -> None:
    assert StopStrings(stops).scan(START, text)[1] == first_match(stops, text)


@PROPERTY
@given(STOPS, TEXT)
def test_holds_back_exactly_what_may_begin_a_stop_string(stops: list[str], text: str) -> None:
    automaton = StopStrings(stops)
    state, match = automaton.scan(START, text)
    if match is None:
        assert automaton.held_back(state) == longest_beginning(stops, text)
        assert automaton.skip(text) == state


@PROPERTY
@given(STOPS, st.lists(TEXT, max_size=6))
def test_chunks_change_nothing(stops: list[str], chunks: list[str]) -> None:
    automaton, state, before = StopStrings(stops), START, 0
    whole = automaton.scan(START, "".join(chunks))
    for chunk in chunks:
        state, match = automaton.scan(state, chunk)
        if match is not None:
            assert whole[1] == Match(before + match.end, match.stop)
            return
        before += len(chunk)
    assert whole == (state, None)


@pytest.mark.parametrize(
    ("stops", "text", "match"),
    [
        (["END"], "the END", Match(7, "END")),
        (["NO", "END"], "ENO", Match(3, "NO")),
        (["b", "abc"], "abc", Match(2, "b")),
        (["b", "ab"], "xab", Match(3, "ab")),
        (["aab"], "aaab", Match(4, "aab")),
        (["\n\n"], "a\nb\n\nc", Match(5, "\n\n")),
        (["😀"], "x😀", Match(2, "😀")),
        (["END", "END"], "END", Match(3, "END")),
        (["END"], "EN D", None),
        (["END"], "", None),
    ],
)
def test_matches(stops: list[str], text: str, match: Match | None) -> None:
    assert StopStrings(stops).scan(START, text)[1] == match


def test_skips_what_is_out_but_remembers_its_end() -> None:
    automaton = StopStrings(["END"])
    assert automaton.scan(automaton.skip("END of an E"), "ND") == (3, Match(2, "END"))


def test_the_longest_stop_strings_on_the_worst_text() -> None:
    automaton = StopStrings(["a" * (MAX_STOP_BYTES - 1) + chr(0x100 + i) for i in range(MAX_STOPS)])
    state, match = automaton.scan(START, "a" * 5000)
    assert match is None
    assert automaton.held_back(state) == MAX_STOP_BYTES - 1
    assert automaton.scan(state, chr(0x103)) == (
        automaton.scan(state, chr(0x103))[0],
        Match(1, "a" * 1023 + chr(0x103)),
    )


def test_one_automaton_for_equal_stop_strings() -> None:
    assert stop_strings(("END", "NO")) is stop_strings(("END", "NO"))


@pytest.mark.parametrize(
    ("stops", "field"),
    [
        ([""], "stop[0]"),
        (["ok", ""], "stop[1]"),
        (["x" * 1025], "stop[0]"),
        (["é" * 513], "stop[0]"),
        (["x"] * 17, "stop"),
    ],
)
def test_refuses_stop_strings_out_of_their_limits(stops: list[str], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_stops(stops)
    assert refused.value.field == field


@pytest.mark.parametrize("stops", [[], ["x" * 1024], ["é" * 512], ["x"] * 16])
def test_takes_stop_strings_at_their_limits(stops: list[str]) -> None:
    check_stops(stops)
