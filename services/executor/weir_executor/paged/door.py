"""The door between the callers' threads and the step thread: what was asked, who is live, which load is shown.

    enter, abort, release ──▶ inbox ──▶ take_in         a step begins
    load, lives           ◀── shown ◀── forget, show    a step is over

One lock guards all of it, and is held for a moment at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from weir_chassis.errors import AlreadyExists, Draining, Overloaded, WorkerLost
from weir_executor.engine import EngineLoad
from weir_executor.paged.sequence import LiveRequest
from weir_executor.step_output import RequestEnd


@dataclass(frozen=True, slots=True)
class Abort:
    key: int
    output_index: int | None


@dataclass(frozen=True, slots=True)
class Release:
    """Of what an ended request left."""

    key: int


Asked = LiveRequest | Abort | Release


class Door:
    def __init__(self, max_waiting: int, load: EngineLoad) -> None:
        """`max_waiting` requests; beyond it a queue only turns load into latency."""
        self._max_waiting, self._load = max_waiting, load
        self._changed = threading.Condition()  # guards everything here
        self._inbox: deque[Asked] = deque()  # requests up to `max_waiting`, and what is asked of them
        self._queued = 0  # requests in the inbox
        self._live: dict[int, LiveRequest] = {}  # from `enter` to RequestEnd
        self._arrivals = 0
        self._error: BaseException | None = None
        self._closing = False
        self._ended = False

    # ── any thread ────────────────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, key: int, new_live: Callable[[int], LiveRequest]) -> None:
        """Queue a request, which `new_live` makes when it knows its arrival.

        Raises WorkerLost, Draining, AlreadyExists, Overloaded.
        """
        with self._changed:
            self._check_open()
            if key in self._live:
                raise AlreadyExists(str(key), f"a request with key {key} is live")
            if self._num_waiting >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} requests are waiting already")
            self._arrivals += 1
            self._live[key] = live = new_live(self._arrivals)
            self._queued += 1
            self._ask(live)

    def abort(self, key: int, output_index: int | None) -> None:
        with self._changed:
            if key in self._live:
                self._ask(Abort(key, output_index))

    def release(self, key: int) -> None:
        with self._changed:
            if not self._ended:
                self._ask(Release(key))

    def ring(self) -> None:
        """The step thread looks whether there is work."""
        with self._changed:
            self._changed.notify()

    def load(self) -> EngineLoad:
        with self._changed:
            return replace(self._load, waiting_requests=self._num_waiting)

    def lives(self) -> list[LiveRequest]:
        with self._changed:
            return list(self._live.values())

    @property
    def error(self) -> BaseException | None:
        """What stopped the step thread, if anything did."""
        return self._error

    def close(self) -> None:
        """Nobody enters any more, and no step begins."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def end(self) -> Sequence[LiveRequest] | None:
        """Nothing is asked or heard from now on. Those who were still live; None to all but the first who asks."""
        with self._changed:
            if self._ended:
                return None
            self._ended = True
            lives = list(self._live.values())
            self._live.clear()
            self._inbox.clear()
            self._queued = 0
            return lives

    # ── the step thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def await_work(self, has_work: Callable[[], bool], seconds: float | None) -> bool:
        """Sleep until something is asked, there `has_work`, or for so many seconds; False when the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._inbox or has_work(), seconds)
            return not self._closing

    def closes_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, seconds)

    def take_in(self) -> Iterable[Asked]:
        """What was asked since the last time, in order. Until the next `show` its requests still count as waiting."""
        with self._changed:
            inbox, self._inbox = self._inbox, deque()
            self._load = replace(self._load, waiting_requests=self._num_waiting)
            self._queued = 0
            return inbox

    def forget(self, ended: Sequence[RequestEnd]) -> bool:
        """They are not live any more. False when all have had their last word already."""
        with self._changed:
            if self._ended:
                return False
            for end in ended:
                del self._live[end.key]
            return True

    def show(self, load: EngineLoad) -> None:
        """The load after the newest step."""
        with self._changed:
            self._load = load

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error

    # ── holding the lock ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _num_waiting(self) -> int:
        return self._load.waiting_requests + self._queued

    def _check_open(self) -> None:
        if self._error is not None:
            raise WorkerLost("the engine has failed")
        if self._closing:
            raise Draining("the engine is closed")

    def _ask(self, asked: Asked) -> None:
        self._inbox.append(asked)
        self._changed.notify()
