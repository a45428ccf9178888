"""Sets of tokens, as xgrammar writes them: bit `id % 32` of word `id // 32`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.int32]
_BITS = (np.uint32(1) << np.arange(32, dtype=np.uint32)).view(np.int32)


def no_tokens(vocab_size: int) -> Words:
    return np.zeros(-(-vocab_size // 32), dtype=np.int32)


def has(words: Words, token_id: int) -> bool:
    return bool(words[token_id // 32] & _BITS[token_id % 32])


def put(words: Words, token_id: int, *, present: bool) -> None:
    """Change the set in place."""
    if present:
        words[token_id // 32] |= _BITS[token_id % 32]
    else:
        words[token_id // 32] &= ~_BITS[token_id % 32]


def is_absent(sets: Sequence[Words], vocab_size: int) -> NDArray[np.bool_]:
    """For each set and token whether it is not in it, [sets, vocabulary]."""
    words = np.stack(sets).astype("<i4", copy=False)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    absent: NDArray[np.bool_] = bits == 0
    return absent
