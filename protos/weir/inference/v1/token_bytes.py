"""What one token's bytes are, by the decoder that `tokenizer.json` names: to postprocess, which makes text of them, and
to the executor, whose guides hold that text to a grammar.

    token  ──Replace──▶ ──ByteFallback──▶ ──Fuse──▶ ──Strip──▶  bytes          Llama 2, Mistral, Gemma
    token  ──ByteLevel──▶  bytes                                               GPT-2, Llama 3, Qwen, DeepSeek
    token  ──Metaspace──▶  bytes                                               T5 and other SentencePiece unigrams

Each of these decides a token's bytes from the token alone, but for the first of a text, which may lose a space. An
output is never the first: it continues a prompt, which has at least one token. So text is the concatenation of tokens'
bytes, and the bytes of a log-probability are those of the text. `tokenizers` ships a
`DecodeStream` that needs no such property, but it raises when a byte token follows a character of byte tokens that it
has already given out, holds on to U+FFFD without bound, decodes its window twice per token, and hides what it holds.
A decoder whose bytes depend on what follows (WordPiece, BPEDecoder, CTC) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

# From the token, or what earlier steps made of it.
Step = Callable[[str | bytes], str | bytes]


def decoder_steps(spec: Mapping[str, Any] | None) -> Sequence[Step]:
    """The steps of the `decoder` entry of a tokenizer.json. Raises ValueError for one that decides otherwise."""
    if spec is None:
        return (_join_with_spaces,)
    fused = False
    for part in _parts(spec):
        _check(part, fused)
        fused = fused or part["type"] in {"Fuse", "ByteLevel"}
    return tuple(_STEPS[part["type"]](part) for part in _parts(spec))


def has_byte_fallback(spec: Mapping[str, Any] | None) -> bool:
    """Whether `<0xE2>` stands for a byte."""
    return spec is not None and any(part["type"] == "ByteFallback" for part in _parts(spec))


def piece_bytes(steps: Sequence[Step], token: str) -> bytes:
    """The bytes that this token adds to a text that has begun."""
    piece: str | bytes = token
    for step in steps:
        piece = step(piece)
    return piece if isinstance(piece, bytes) else piece.encode()


def byte_of(token: str) -> int | None:
    """The byte that a byte-fallback token such as `<0xE2>` stands for."""
    if len(token) != 6 or not (token.startswith("<0x") and token.endswith(">")):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None


def _parts(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return spec["decoders"] if spec["type"] == "Sequence" else [spec]


def _check(part: Mapping[str, Any], fused: bool) -> None:
    kind = part["type"]
    if kind not in _STEPS:
        raise ValueError(f"decoder {kind} cannot be streamed token by token; known: {', '.join(sorted(_STEPS))}")
    if kind == "Replace" and len(part["pattern"].get("String", "")) != 1:
        raise ValueError("decoder Replace can be streamed for a pattern of one character only")
    if kind == "Strip" and not (fused and part["start"] <= 1 and part["stop"] == 0):
        raise ValueError("decoder Strip can be streamed after Fuse, for at most one character at the start only")


def _join_with_spaces(piece: str | bytes) -> str | bytes:
    assert isinstance(piece, str)
    return " " + piece


def _byte_level(_: Mapping[str, Any]) -> Step:
    def step(piece: str | bytes) -> str | bytes:
        assert isinstance(piece, str)
        values = [BYTE_OF_CHARACTER.get(character) for character in piece]
        # An added token holds plain text and is taken as it stands.
        return piece.encode() if None in values else bytes(value for value in values if value is not None)

    return step


def _byte_fallback(_: Mapping[str, Any]) -> Step:
    def step(piece: str | bytes) -> str | bytes:
        value = byte_of(piece) if isinstance(piece, str) else None
        return piece if value is None else bytes([value])

    return step


def _replace(part: Mapping[str, Any]) -> Step:
    old, new = part["pattern"]["String"], part["content"]
    return lambda piece: piece.replace(old, new) if isinstance(piece, str) else piece


def _metaspace(part: Mapping[str, Any]) -> Step:
    old = part["replacement"]
    return lambda piece: piece.replace(old, " ") if isinstance(piece, str) else piece


def _as_it_is(_: Mapping[str, Any]) -> Step:
    return lambda piece: piece


def _byte_characters() -> Mapping[str, int]:
    """GPT-2's printable stand-ins: a printable Latin-1 character is its own byte, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}


BYTE_OF_CHARACTER: Final = _byte_characters()
_STEPS: Final[Mapping[str, Callable[[Mapping[str, Any]], Step]]] = {
    "ByteLevel": _byte_level,
    "ByteFallback": _byte_fallback,
    "Replace": _replace,
    "Metaspace": _metaspace,
    "Fuse": _as_it_is,
    "Strip": _as_it_is,  # `_check` lets through only what strips the start of a text
}
