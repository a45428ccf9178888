"""Tokens that carry the time at which they were drawn, so that a client sees how long each was on its way.

A token id is `FIRST` plus the machine's monotonic clock in steps of 10 µs, modulo one second; its text is " t" and five
digits. A client on the same machine has the same clock, whatever became of the token between: an id or a text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

FIRST = 4096  # above the demo model's vocabulary
STEPS = 100_000
_STEP_NS = 10_000
_MOST_NS = STEPS * _STEP_NS
_TEXT = re.compile(rb" t(\d{5})")


def now() -> int:
    """The token id of this moment."""
    return FIRST + time.monotonic_ns() // _STEP_NS % STEPS


def text(token_id: int) -> str:
    return f" t{token_id - FIRST:05d}"


def age_seconds(token_id: int, now_ns: int) -> float:
    """How long ago it was drawn; right for less than a second."""
    return (now_ns - (token_id - FIRST) * _STEP_NS) % _MOST_NS / 1e9


def found(data: bytes) -> Iterator[int]:
    """The token ids whose texts are in the data."""
    return (FIRST + int(match) for match in _TEXT.findall(data))
