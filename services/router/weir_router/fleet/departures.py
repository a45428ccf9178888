"""Models whose last executor has left the fleet: for a while they are away, and only then unknown. No I/O.

A rolling restart of a model's only worker takes moments; a client that is told meanwhile that there is no such model
gives up, and one that is told that nobody serves it now comes again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

# As long as a node takes to come back. Names: more than routers serve.
_REMEMBERED_SECONDS: Final = 600.0
_MAX_MODELS: Final = 1000


class Departures:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._left_at: dict[str, float] = {}

    def note(self, models: Iterable[str], now: float) -> None:
        for model in models:
            self._left_at.pop(model, None)  # so that the newest are last
            self._left_at[model] = now
        for model in list(self._left_at)[:-_MAX_MODELS]:
            del self._left_at[model]

    def standing(self, present: Collection[str], now: float) -> frozenset[str]:
        """Those that have not come back and are not forgotten."""
        for model, left_at in list(self._left_at.items()):
            if model in present or now - left_at >= _REMEMBERED_SECONDS:
                del self._left_at[model]
        return frozenset(self._left_at)
