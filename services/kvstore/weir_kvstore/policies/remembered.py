"""What is kept of blocks that are not here now, by their id or address; the oldest is forgotten first. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """At most `max_entries` of them."""

    def __init__(self, max_entries: int) -> None:
        assert max_entries > 0, max_entries
        self._max_entries = max_entries
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def keep(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._max_entries:
            self._values.popitem(last=False)

    def peek(self, key: K) -> V | None:
        return self._values.get(key)

    def recall(self, key: K) -> V | None:
        """Its value, which is forgotten by this."""
        return self._values.pop(key, None)
