"""Token ids to text, one token at a time: text comes out as soon as it is whole UTF-8.

Bytes that can never become whole turn into U+FFFD: one for each byte of byte-fallback tokens, one for each maximal part
elsewhere. That is what the library's decode of a prompt and the output adds to its decode of the prompt: the first
token of an output keeps the space that some decoders strip from the start of a text. There is one difference. In a run
of byte tokens with one wrong byte the library spoils every character; here those that are whole have been sent already,
so they stand, and only the wrong bytes become U+FFFD.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Final

from weir_postprocess.vocabulary import Vocabulary

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_EACH_BYTE: Final = "weir_replace_each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _REPLACEMENT * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)


class Detokenizer:
    """The text of one output so far, without keeping it: what it holds is at most three bytes of a character."""

    __slots__ = ("_bytes_of", "_errors", "_pending")

    def __init__(self, vocabulary: Vocabulary, *, skip_special_tokens: bool):
        self._bytes_of = vocabulary.plain_bytes_of if skip_special_tokens else vocabulary.bytes_of
        self._errors = _EACH_BYTE if vocabulary.has_byte_tokens else "replace"
        self._pending = b""

    @property
    def whole(self) -> bool:
        """Whether the text given out is all the text of the tokens taken in."""
        return not self._pending

    def add(self, token_id: int) -> str:
        """The text that this token completes; often its own, empty for the middle of a character."""
        return self._decode(self._pending + self._bytes_of(token_id))

    def replay(self, token_ids: Sequence[int]) -> str:
        """As `add` of each, at a fraction of the cost: for the thousands of tokens of an output that is resumed."""
        return self._decode(b"".join([self._pending, *map(self._bytes_of, token_ids)]))

    def flush(self) -> str:
        """The text of bytes that will never be whole now."""
        text, _ = codecs.utf_8_decode(self._pending, self._errors, True)
        self._pending = b""
        return text

    def _decode(self, data: bytes) -> str:
        text, consumed = codecs.utf_8_decode(data, self._errors, False)
        self._pending = data[consumed:]
        return text
