"""How many of how many, over a window that moves. Pure: times are monotonic seconds, passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# What the window is made of: what comes within one slice lapses together.
_SLICES = 10


@dataclass(slots=True)
class _Slice:
    begins_at: float
    whole: int = 0
    part: int = 0


class Tally:
    """`whole` and `part` count what came within the last `window_seconds`, and at most a slice more. Not locked."""

    __slots__ = ("_slice_seconds", "_slices", "_window_seconds", "part", "whole")

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds, self._slice_seconds = window_seconds, window_seconds / _SLICES
        self._slices: deque[_Slice] = deque()  # at most _SLICES + 2
        self.whole = self.part = 0

    def add(self, now: float, *, whole: int = 0, part: int = 0) -> None:
        self.forget(now)
        if not self._slices or now >= self._slices[-1].begins_at + self._slice_seconds:
            self._slices.append(_Slice(now))
        newest = self._slices[-1]
        newest.whole += whole
        newest.part += part
        self.whole += whole
        self.part += part

    def forget(self, now: float) -> None:
        """A slice lapses a whole window after it has ended, so that nothing is forgotten early."""
        while self._slices and now >= self._slices[0].begins_at + self._slice_seconds + self._window_seconds:
            lapsed = self._slices.popleft()
            self.whole -= lapsed.whole
            self.part -= lapsed.part

    def clear(self) -> None:
        self._slices.clear()
        self.whole = self.part = 0
