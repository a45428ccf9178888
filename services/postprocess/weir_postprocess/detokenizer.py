"""Token ids to text, one token at a time: text comes out as soon as it is whole UTF-8.

Bytes that can never become whole turn into U+FFFD: one for each byte of byte-fallback tokens, one for each maximal part
elsewhere, which is what the library's decode of all the ids gives. There is one difference. In a run of byte tokens
with one wrong byte the library spoils every character; here those that are whole have been sent already, so they stand,
and only the wrong bytes become U+FFFD.
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

    __slots__ = ("_bytes", "_errors", "_pending", "_started", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, *, skip_special_tokens: bool):
        self._vocabulary = vocabulary
        self._bytes = vocabulary.plain_bytes if skip_special_tokens else vocabulary.token_bytes
        self._errors = _EACH_BYTE if vocabulary.has_byte_tokens else "replace"
        self._pending = b""
        # Whether a token has begun the text; special tokens that are left out do not.
        self._started = False

    @property
    def whole(self) -> bool:
        """Whether the text given out is all the text of the tokens taken in."""
        return not self._pending

    def add(self, token_id: int) -> str:
        """The text that this token completes; often its own, empty for the middle of a character."""
        data = self._bytes[token_id] if self._started else self._begin(token_id)
        return self._decode(self._pending + data)

    def replay(self, token_ids: Sequence[int]) -> str:
        """As `add` of each, at a tenth of the cost: for the thousands of tokens of an output that is resumed."""
        begun = 0
        parts = [self._pending]
        while not self._started and begun < len(token_ids):
            parts.append(self._begin(token_ids[begun]))
            begun += 1
        parts += [self._bytes[token_id] for token_id in token_ids[begun:]]
        return self._decode(b"".join(parts))

    def flush(self) -> str:
        """The text of bytes that will never be whole now."""
        text, _ = codecs.utf_8_decode(self._pending, self._errors, True)
        self._pending = b""
        return text

    def _begin(self, token_id: int) -> bytes:
        skipped = not self._bytes[token_id] and token_id in self._vocabulary.special_ids
        if skipped or self._vocabulary.tokens[token_id] is None:
            return b""
        self._started = True
        return self._vocabulary.first_bytes(token_id)

    def _decode(self, data: bytes) -> str:
        text, consumed = codecs.utf_8_decode(data, self._errors, False)
        self._pending = data[consumed:]
        return text
