"""Properties of one output: whatever the chunking, the same tokens and the same text, each once and in order."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.postprocess.vocabularies import END, FAMILIES, PROPERTY, Family, byte_level, chunkings, llama, texts
from weir.inference.v1.stream_pb2 import TokenLogprob
from weir_postprocess.detokenizer import Detokenizer
from weir_postprocess.output import Output, OutputOptions, Released
from weir_postprocess.stop import StopStrings


@dataclass
class Collected:
    """What a client has got, checked as it comes."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    deltas: list[Released] = field(default_factory=list)

    def take(self, released: Released | None, already: int = 0) -> None:
        if released is None:
            return
        assert released.first_token_index == already + len(self.token_ids)
        assert released.token_ids
        released.text.encode()  # raises for half a character
        self.token_ids += released.token_ids
        self.text += released.text
        self.deltas.append(released)


def options(family: Family, stops: list[str] | None = None, include: bool = False, skip: bool = True) -> OutputOptions:
    return OutputOptions(family.vocabulary, StopStrings(stops) if stops else None, include, skip)


def run(wanted: OutputOptions, rows: list[list[int]], resumed: list[int] | None = None) -> tuple[Collected, Output]:
    output, collected = Output(wanted, resumed or ()), Collected()
    for row in rows:
        if output.ended:
            break
        output.add(row)
        collected.take(output.take(), len(resumed or ()))
    output.end()
    collected.take(output.take(), len(resumed or ()))
    return collected, output


def expected(family: Family, ids: list[int], stops: list[str], include: bool) -> tuple[list[int], str, str | None]:
    """The definition, by decoding every beginning of the ids: the first with a stop string in it ends the output."""
    for count in range(1, len(ids) + 1):
        text = family.text(ids[:count]).rstrip("\N{REPLACEMENT CHARACTER}")
        ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
        if ends:
            end, _, stop = min(ends)
            return ids[:count], text[: end if include else end - len(stop)], stop
    return ids, family.text(ids), None


@st.composite
def texts_with_stops(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(texts())
    places = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 6))
    inside = [text[at : at + size] for at, size in draw(st.lists(places, max_size=2)) if text[at : at + size]]
    beside = draw(st.lists(st.sampled_from(["\n\n", "the w", "Assistant:", "好 ", "oo", " hello!"]), max_size=2))
    return text, inside + beside


@pytest.mark.parametrize("name", FAMILIES)
@PROPERTY
@given(data=st.data())
def test_any_chunking_gives_the_whole_text(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]()
    ids = family.ids(data.draw(texts()))
    collected, _ = run(options(family), data.draw(chunkings(ids)))
    assert (collected.token_ids, collected.text) == (ids, family.text(ids))


@pytest.mark.parametrize("name", FAMILIES)
@PROPERTY
@given(data=st.data())
def test_any_chunking_ends_at_the_first_stop_string(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]()
    text, stops = data.draw(texts_with_stops())
    include, ids = data.draw(st.booleans()), family.ids(text)
    collected, output = run(options(family, stops, include), data.draw(chunkings(ids)))
    assert (collected.token_ids, collected.text, output.stop) == expected(family, ids, stops, include)


@pytest.mark.parametrize("name", FAMILIES)
@PROPERTY
@given(data=st.data())
def test_a_delta_before_the_end_has_the_text_of_its_tokens(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]()
    text, stops = data.draw(texts_with_stops())
    collected, output = run(options(family, stops), data.draw(chunkings(family.ids(text))))
    detokenizer = Detokenizer(family.vocabulary, skip_special_tokens=True)
    for delta in collected.deltas[: -1 if output.stop else None]:
        assert delta.text == "".join(map(detokenizer.add, delta.token_ids))
        assert not any(stop in delta.text for stop in stops)


@pytest.mark.parametrize("name", FAMILIES)
@PROPERTY
@given(data=st.data())
def test_resuming_after_what_was_delivered_changes_nothing(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]()
    text, stops = data.draw(texts_with_stops())
    ids = family.ids(text)
    wanted = options(family, stops, data.draw(st.booleans()))
    whole, ended = run(wanted, [ids])
    output, first = Output(wanted), Collected()
    for row in data.draw(chunkings(ids[: data.draw(st.integers(0, len(ids)))])):
        if not output.ended:
            output.add(row)
            first.take(output.take())
    if output.stop is None:
        delivered = first.token_ids
        second, output = run(wanted, data.draw(chunkings(ids[len(delivered) :])), list(delivered))
        first.token_ids, first.text = delivered + second.token_ids, first.text + second.text
    assert (first.token_ids, first.text, output.stop) == (whole.token_ids, whole.text, ended.stop)


def test_tokens_wait_for_what_may_be_a_stop_string() -> None:
    family = byte_level()
    output = Output(options(family, ["<END>"]))
    ids = [family.ids(character)[0] for character in "a<ENb"]
    taken = []
    for token_id in ids:
        output.add([token_id])
        taken.append(output.take())
    assert [released and (released.token_ids, released.text) for released in taken] == [
        (ids[:1], "a"), None, None, None, (ids[1:], "<ENb"),
    ]  # fmt: skip


def test_the_token_that_completes_a_stop_string_counts_and_later_ones_do_not() -> None:
    family = byte_level()
    ids = [family.ids(character)[0] for character in "abcd"]
    output = Output(options(family, ["bc"]))
    output.add(ids)
    released = output.take()
    assert released is not None
    assert (released.token_ids, released.text, output.stop, output.ended) == (ids[:3], "a", "bc", True)
    assert output.take() is None


def test_a_token_that_goes_on_behind_the_stop_string_is_cut() -> None:
    family = byte_level()
    token, text = next(
        (i, text)
        for i, text in enumerate(family.vocabulary.tokens)
        if text and text.isascii() and text.isalpha() and len(text) > 3
    )
    for include, cut in ((False, text[0]), (True, text[:3])):
        collected, _ = run(options(family, [text[1:3]], include), [[token]])
        assert (collected.token_ids, collected.text) == ([token], cut)


def test_the_end_releases_what_was_held() -> None:
    family = llama()
    ids = [*family.ids("on"), *family.byte_ids("😀".encode()[:3])]
    collected, output = run(options(family, ["n" + "\N{REPLACEMENT CHARACTER}" * 4]), [ids])
    assert (collected.token_ids, collected.text, output.stop) == (ids, family.text(ids), None)


def test_a_stop_string_that_the_last_bytes_complete() -> None:
    family = llama()
    ids = [*family.ids("on"), *family.byte_ids(b"\xe4")]
    collected, output = run(options(family, ["n\N{REPLACEMENT CHARACTER}"]), [ids])
    assert (collected.token_ids, collected.text, output.stop) == (ids, " o", "n\N{REPLACEMENT CHARACTER}")


def test_a_stop_token_counts_without_text() -> None:
    family = byte_level()
    ids = family.ids("hello on")
    output = Output(options(family))
    output.add(ids, textless_last=True)
    output.end()
    released = output.take()
    assert released is not None
    assert (released.token_ids, released.text) == (ids, family.text(ids[:-1]))


def test_a_stop_string_across_a_resume_leaves_what_is_out() -> None:
    family = byte_level()
    ids = [family.ids(character)[0] for character in "aEND"]
    for include, text in ((False, ""), (True, "ND")):
        collected, output = run(options(family, ["END"], include), [ids[2:]], resumed=ids[:2])
        assert (collected.token_ids, collected.text, output.stop) == (ids[2:], text, "END")


def test_a_character_across_a_resume_comes_out_whole() -> None:
    family = llama()
    ids = family.byte_ids("好".encode())
    collected, _ = run(options(family), [ids[2:]], resumed=ids[:2])
    assert collected.text == "好"


def test_a_character_that_a_resume_never_completes_is_replaced() -> None:
    family = llama()
    output = Output(options(family), family.byte_ids("好".encode()[:2]))
    output.end()
    assert output.take() == Released(2, [], "\N{REPLACEMENT CHARACTER}" * 2, [])


def test_a_token_that_the_tokenizer_does_not_know_counts_without_text() -> None:
    family = byte_level()
    padding, (a,) = len(family.vocabulary), family.ids("a")
    collected, output = run(options(family, ["aa"]), [[padding], [a, padding], [a]])
    assert (collected.token_ids, collected.text, output.stop) == ([padding, a, padding, a], "", "aa")


def test_logprobs_travel_with_their_tokens() -> None:
    family = byte_level()
    ids = [family.ids(character)[0] for character in "aENDb"]
    logprobs = [TokenLogprob(token_id=token_id, logprob=-i) for i, token_id in enumerate(ids)]
    output = Output(options(family, ["END"]))
    output.add(ids[:2], logprobs[:2])
    first = output.take()
    output.add(ids[2:], logprobs[2:])
    second = output.take()
    assert first is not None
    assert second is not None
    assert (list(first.logprobs), list(second.logprobs)) == (logprobs[:1], logprobs[1:4])


def test_special_tokens_have_text_when_it_is_wanted() -> None:
    family = byte_level()
    end = family.id_of(END)
    for skip, text in ((True, ""), (False, END)):
        collected, _ = run(options(family, skip=skip), [[end]])
        assert (collected.token_ids, collected.text) == ([end], text)
