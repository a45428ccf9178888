"""Which tokens are green after which: the same on every machine, because it is integers alone.

    word(token)                    32 random bits, the same for everybody          ┐
    mask, factor = (key, previous) 32 random bits each, of which factor is odd     ├ Philox, counter-based
    green: (word ^ mask) · factor mod 2³², as a signed number, below the threshold ┘

So a tenant's set after a token is drawn anew for every token and every key, each token is in it with the probability
`green_fraction`, and finding the whole set costs an exclusive or, a product and a comparison per token of the
vocabulary. Kirchenbauer et al., "A Watermark for Large Language Models" (arXiv:2301.10226), permute the vocabulary
instead and take its first part, so that the sets' sizes are exact; tests of distinct pairs need the probability alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from weir_executor.paged.philox import philox4x32

Words = NDArray[np.int32]
# Of the words that are the same for everybody: any constants do.
_PUBLIC_KEY = (0x57454952, 0x57415445)


@lru_cache(maxsize=4)  # a process has one vocabulary; tests have a few
def token_words(vocab_size: int) -> Words:
    """Of each token, [vocabulary]. Does not depend on how many there are."""
    blocks = np.arange(-(-vocab_size // 4), dtype=np.uint64)
    zeros = np.zeros_like(blocks)
    keys = np.stack([np.full_like(blocks, word) for word in _PUBLIC_KEY])
    words = philox4x32(np.stack((blocks, zeros, zeros, zeros)), keys)
    return words.T.reshape(-1)[:vocab_size].astype(np.uint32).view(np.int32)


def place_words(keys: Sequence[bytes], previous: Sequence[int] | NDArray[np.int64]) -> tuple[Words, Words]:
    """Mask and factor of each place, [places]: of the key there and the token before it."""
    words = np.frombuffer(b"".join(keys), dtype="<u4").reshape(len(keys), 4).astype(np.uint64).T
    counters = np.stack((np.asarray(previous, dtype=np.uint64), words[2], words[3], np.ones(len(keys), np.uint64)))
    mask, factor, _, _ = philox4x32(counters, words[:2]).astype(np.uint32)
    return mask.view(np.int32), (factor | np.uint32(1)).view(np.int32)


def threshold(green_fraction: float) -> int:
    """A signed 32-bit number that so large a part of them is below."""
    return round(green_fraction * 2**32) - 2**31


def are_green(
    key: bytes, previous: NDArray[np.int64], token_ids: NDArray[np.int64], green_fraction: float
) -> NDArray[np.bool_]:
    """Whether each token is green after the one before it, [pairs]."""
    mask, factor = place_words([key] * len(previous), previous)
    words = token_words(int(token_ids.max(initial=0)) + 1)[token_ids]
    green: NDArray[np.bool_] = (words ^ mask) * factor < threshold(green_fraction)
    return green
