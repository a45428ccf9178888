"""Text token by token is the text of all the tokens, as the library decodes it."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.postprocess.vocabularies import (
    BYTE_TOKENS,
    END,
    FAMILIES,
    PROPERTY,
    RARE,
    Family,
    byte_level,
    llama,
    texts,
)
from weir.inference.v1.token_bytes import byte_of
from weir_postprocess.detokenizer import Detokenizer


def stream(family: Family, ids: list[int], skip_special_tokens: bool = True) -> str:
    detokenizer = Detokenizer(family.vocabulary, skip_special_tokens=skip_special_tokens)
    return "".join([detokenizer.add(i) for i in ids]) + detokenizer.flush()


def any_ids(family: Family) -> st.SearchStrategy[list[int]]:
    """Some past the tokenizer's, as models pad their vocabulary."""
    return st.lists(st.integers(0, len(family.vocabulary) + 9), max_size=30)


def characters_kept(family: Family, ids: list[int], skip: bool) -> str:
    """`Family.text`, but with each whole character among wrong bytes kept (detokenizer.py says why).

    Each wrong byte is put as a byte token that is wrong alone, away from the whole ones, by a mark between them.
    """
    mark, context = "\ue000", "o"
    tokenizer = family.tokenizer
    out: list[str] = [context]
    kept = [i for i in ids if not (skip and i in family.vocabulary.special_ids)]
    tokens = [token for token in map(tokenizer.id_to_token, kept) if token is not None]
    for is_byte, group in groupby(tokens, lambda token: byte_of(token) is not None):
        run = list(group)
        out += _separated(run, mark) if is_byte else run
    text: str = tokenizer.decoder.decode(out)
    return text.replace(mark, "").removeprefix(context)


def _separated(tokens: list[str], mark: str) -> list[str]:
    data, out = bytes(byte_of(token) or 0 for token in tokens), []
    while data:
        size = next((k for k in range(1, 5) if _is_character(data[:k])), 1)
        out += [*(f"<0x{value:02X}>" for value in data[:size]), mark]
        data = data[size:]
    return out[:-1]


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("name", FAMILIES)
@PROPERTY
@given(data=st.data())
def test_text_of_tokens_is_the_librarys(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]()
    ids = family.ids(data.draw(texts()))
    assert stream(family, ids) == family.text(ids)


@PROPERTY
@given(data=st.data())
def test_byte_level_agrees_on_any_ids_whatever(data: st.DataObject) -> None:
    ids, skip = data.draw(any_ids(byte_level())), data.draw(st.booleans())
    assert stream(byte_level(), ids, skip) == byte_level().text(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", BYTE_TOKENS)
@PROPERTY
@given(data=st.data())
def test_byte_tokens_agree_on_any_ids_but_keep_whole_characters(name: str, data: st.DataObject) -> None:
    family = BYTE_TOKENS[name]()
    runs = st.one_of(any_ids(family), st.text(RARE, max_size=3).map(lambda text: family.byte_ids(text.encode())))
    ids = [i for run in data.draw(st.lists(runs, max_size=6)) for i in run]
    skip = data.draw(st.booleans())
    assert stream(family, ids, skip) == characters_kept(family, ids, skip)


@pytest.mark.parametrize("name", FAMILIES)
@PROPERTY
@given(data=st.data())
def test_an_output_that_is_cut_anywhere_ends_as_the_librarys_does(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]()
    # One rare character behind a word, so that the cut leaves a run of bytes without a whole character in it.
    ids = family.ids("the river " + data.draw(st.sampled_from(RARE)))
    cut = ids[: data.draw(st.integers(0, len(ids)))]
    assert stream(family, cut) == family.text(cut)


@pytest.mark.parametrize("name", FAMILIES)
@PROPERTY
@given(data=st.data())
def test_a_replay_ends_in_the_state_of_the_steps(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]()
    ids = data.draw(any_ids(family))
    cut, skip = data.draw(st.integers(0, len(ids))), data.draw(st.booleans())
    detokenizer = Detokenizer(family.vocabulary, skip_special_tokens=skip)
    text = detokenizer.replay(ids[:cut]) + "".join(map(detokenizer.add, ids[cut:])) + detokenizer.flush()
    assert text == stream(family, ids, skip)


def test_a_character_comes_out_with_the_token_that_completes_it() -> None:
    family = llama()
    ids = family.byte_ids("😀".encode())
    detokenizer = Detokenizer(family.vocabulary, skip_special_tokens=True)
    assert [(detokenizer.add(i), detokenizer.whole) for i in ids] == [("", False)] * 3 + [("😀", True)]


def test_special_tokens_are_left_out_or_kept() -> None:
    family = byte_level()
    ids = [family.id_of(END), *family.ids("on")]
    assert stream(family, ids) == "on"
    assert stream(family, ids, skip_special_tokens=False) == END + "on"


def test_a_special_token_does_not_break_a_character() -> None:
    family = byte_level()
    first, *rest = family.ids("😀")
    assert stream(family, [first, family.id_of(END), *rest]) == "😀"


def test_wrong_bytes_for_ever_hold_nothing_back() -> None:
    family = llama()
    detokenizer = Detokenizer(family.vocabulary, skip_special_tokens=True)
    text = [detokenizer.add(i) for i in family.byte_ids(b"\xff") * 1000]
    assert set(text) == {"\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize("name", ["llama", "metaspace"])
def test_an_output_keeps_the_space_that_a_text_loses_at_its_start(name: str) -> None:
    family = FAMILIES[name]()
    prompt, output = family.ids("the river"), family.ids("flows on")
    assert (family.vocabulary.tokens[output[0]] or "").startswith("▁")
    assert family.tokenizer.decode(output) == "flows on"
    assert stream(family, output) == " flows on"
    assert family.tokenizer.decode(prompt) + stream(family, output) == family.tokenizer.decode(prompt + output)


def test_an_id_past_the_vocabulary_has_no_text_and_breaks_no_character() -> None:
    family = byte_level()
    first, *rest = family.ids("😀")
    assert stream(family, [len(family.vocabulary), first, 2**31 - 1, *rest]) == "😀"
