"""Random numbers that are a pure function of where they are used: (seed, output index, token position).

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC'11), in NumPy.
There is no state, so a preempted, re-batched or resumed sequence draws the numbers it would have drawn undisturbed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW, _WIDTH = np.uint64(0xFFFFFFFF), np.uint64(32)

Words = NDArray[np.uint64]  # 32-bit words, in 64 bits so that products fit


def philox4x32(counters: Words, keys: Words) -> Words:
    """Four random words for each counter of four words under each key of two; one column per draw."""
    (c0, c1, c2, c3), (k0, k1) = counters, keys
    for _ in range(_ROUNDS):
        left, right = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (right >> _WIDTH) ^ c1 ^ k0, right & _LOW, (left >> _WIDTH) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack((c0, c1, c2, c3))


def uniforms(seeds: Sequence[int], output_indices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) per draw, of 53 random bits. Seeds count modulo 2⁶⁴."""
    seed = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    output = np.array(output_indices, dtype=np.uint64)
    counters = np.stack((position & _LOW, position >> _WIDTH, output, np.zeros_like(output)))
    high, low, _, _ = philox4x32(counters, np.stack((seed & _LOW, seed >> _WIDTH)))
    bits = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    numbers: NDArray[np.float64] = bits.astype(np.float64) / float(1 << 53)
    return numbers
