from __future__ import annotations

from typing import Any

import pytest

from weir.inference.v1.token_bytes import byte_of, decoder_steps, has_byte_fallback, piece_bytes

REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FUSE, FALLBACK, BYTE_LEVEL = {"type": "Fuse"}, {"type": "ByteFallback"}, {"type": "ByteLevel"}


def strip(start: int = 1, stop: int = 0) -> dict[str, Any]:
    return {"type": "Strip", "content": " ", "start": start, "stop": stop}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(parts)}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}


@pytest.mark.parametrize(
    ("spec", "token", "data"),
    [
        pytest.param(BYTE_LEVEL, "Ġhi", b" hi", id="byte level"),
        pytest.param(BYTE_LEVEL, "âĤ", b"\xe2\x82", id="part of a character"),
        pytest.param(BYTE_LEVEL, "<日本>", "<日本>".encode(), id="an added token is plain text"),
        pytest.param(sequence(REPLACE, FALLBACK, FUSE, strip()), "▁hi", b" hi", id="a space that begins a text"),
        pytest.param(sequence(REPLACE, FALLBACK, FUSE, strip()), "<0x20>", b" ", id="the same as a byte"),
        pytest.param(sequence(REPLACE, FALLBACK, FUSE), "<0xE2>", b"\xe2", id="byte token"),
        pytest.param(sequence(REPLACE, FUSE), "<0xE2>", b"<0xE2>", id="no byte tokens"),
        pytest.param(metaspace("always"), "▁▁a", b"  a", id="metaspace"),
        pytest.param(metaspace("never"), "▁a", b" a", id="metaspace that never prepends"),
        pytest.param(metaspace("first"), "▁a", b" a", id="metaspace that prepends to the first"),
        pytest.param(None, "a", b" a", id="none"),
    ],
)
def test_bytes_of_a_token(spec: dict[str, Any] | None, token: str, data: bytes) -> None:
    assert piece_bytes(decoder_steps(spec), token) == data


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "BPEDecoder"),
        (sequence(FALLBACK, {"type": "CTC"}), "CTC"),
        (sequence(strip(), FUSE), "Strip"),
        (sequence(FUSE, strip(start=2)), "Strip"),
        (sequence(FUSE, strip(stop=1)), "Strip"),
        ({"type": "Replace", "pattern": {"Regex": "▁"}, "content": " "}, "Replace"),
        ({"type": "Replace", "pattern": {"String": "ab"}, "content": " "}, "Replace"),
    ],
)
def test_a_decoder_that_looks_further_is_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decoder_steps(spec)


@pytest.mark.parametrize(
    ("token", "value"),
    [("<0x00>", 0), ("<0xE2>", 0xE2), ("<0xff>", 255), ("<0xGG>", None), ("0xE2", None), ("<0xE2", None), ("", None)],
)
def test_byte_tokens(token: str, value: int | None) -> None:
    assert byte_of(token) == value


@pytest.mark.parametrize(
    ("spec", "has"), [(None, False), (BYTE_LEVEL, False), (FALLBACK, True), (sequence(FUSE), False)]
)
def test_has_byte_fallback(spec: dict[str, Any] | None, has: bool) -> None:
    assert has_byte_fallback(spec) is has
