"""The requests that an engine has taken, as every thread may ask: each from `enter` to `remove`."""

from __future__ import annotations

import threading

from weir_chassis.errors import AlreadyExists, Overloaded, WorkerLost
from weir_executor.foreign.live import LiveRequest


class Lives:
    """Used by any thread. Whoever is not begun waits, and only so many may."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._by_key: dict[int, LiveRequest] = {}
        self._num_waiting = 0
        self._error: Exception | None = None
        self._closed = False

    @property
    def error(self) -> Exception | None:
        """What the engine died of."""
        return self._error

    def enter(self, live: LiveRequest) -> None:
        """Raises WorkerLost, AlreadyExists, Overloaded."""
        with self._lock:
            if self._closed or self._error is not None:
                raise WorkerLost("the engine has stopped")
            if live.key in self._by_key:
                raise AlreadyExists(str(live.key), f"request {live.key} lives")
            if self._num_waiting >= self._max_waiting:
                raise Overloaded(f"{self._num_waiting} requests wait, the limit is {self._max_waiting}")
            self._by_key[live.key] = live
            self._num_waiting += 1

    def begin(self, live: LiveRequest, now: float) -> None:
        """It waits no longer."""
        with self._lock:
            live.begun_at = now
            self._num_waiting -= 1

    def remove(self, live: LiveRequest) -> bool:
        """Whether it was here."""
        with self._lock:
            if self._by_key.get(live.key) is not live:
                return False
            del self._by_key[live.key]
            self._num_waiting -= live.begun_at is None
            return True

    def find(self, key: int) -> LiveRequest | None:
        return self._by_key.get(key)

    def all(self) -> list[LiveRequest]:
        with self._lock:
            return list(self._by_key.values())

    def fail(self, error: Exception) -> bool:
        """Nobody new from now on. Whether this is news."""
        with self._lock:
            if self._error is not None or self._closed:
                return False
            self._error = error
            return True

    def close(self) -> bool:
        """Nobody new from now on. Whether this is the first time."""
        with self._lock:
            was_open, self._closed = not self._closed, True
            return was_open
