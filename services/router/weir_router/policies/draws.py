"""Chance that is a pure function of what it is drawn for: the same request draws the same, at every router and again.

The mixing is SplitMix64's finalizer: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA
2014; the constants are Stafford's variant 13.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_UNIT: Final = 2.0**-53


def mix(number: int) -> int:
    """64 bits that look like any others, from the lowest 64 of `number`."""
    number = (number + _GOLDEN) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def unit(number: int) -> float:
    """64 mixed bits as a number in [0, 1)."""
    return (number >> 11) * _UNIT


def spread(number: int) -> float:
    """In [0, 1), from 64 bits that are mixed already: a third of the time that `mix` takes, for one of many workers."""
    return ((number * _GOLDEN & _MASK) >> 11) * _UNIT


# Names of workers and sessions that come again and again. As many as a large fleet has, and its busiest sessions.
@lru_cache(maxsize=16_384)
def name_bits(name: str) -> int:
    """64 bits of a name, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
