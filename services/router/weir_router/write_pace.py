"""How often a client's stream is written while the event loop is busy: less often, with more in each message.

A write costs the same whatever is in it. While the loop has time to spare, every delta is sent at once. The busier it
is, the longer a stream that was just written waits for the next round of writes, and its deltas become one. A stream
that was not just written is still written at once, so that slow streams are never held back. Only that a request was
accepted waits for its first tokens, which bring the same news, though not for long.

What goes to a worker for many requests may wait for more of them, in the same measure and not as long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

# The share of its time that a loop may be busy without anybody's having to wait.
_FREE_SHARE: Final = 0.5
# Of a loop that is busy all the time. Longer would be seen by a reader.
_LONGEST_SECONDS: Final = 0.02
# Of what this is for a client's stream: before its first token a request waits for this in vain.
_JOINING_SHARE: Final = 0.25
# That a request was accepted is to be known before anybody asks himself whether it was.
BEGINNING_SECONDS: Final = 0.2
# The share is that of the last so many seconds.
_WINDOW_SECONDS: Final = 0.05


class WritePace:
    """One event loop's. `monotonic` and `busy` are seconds: the time, and how much of it this thread has computed."""

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, busy: Callable[[], float] = time.thread_time
    ) -> None:
        self._monotonic, self._busy = monotonic, busy
        # Between two writes of one stream.
        self.interval = 0.0
        self._since, self._busy_before = monotonic(), busy()
        self._round, self._beginnings = _Round(), _Round()

    def note(self) -> float:
        """A stream is about to be written. Returns now, in monotonic seconds."""
        now = self._monotonic()
        passed = now - self._since
        if passed >= _WINDOW_SECONDS:
            busy = self._busy()
            share = (busy - self._busy_before) / passed
            self._since, self._busy_before = now, busy
            self.interval = _LONGEST_SECONDS * min(1.0, max(0.0, (share - _FREE_SHARE) / (1 - _FREE_SHARE)))
        return now

    def joining_seconds(self) -> float:
        """How long a message to a worker waits, from now, for more that is to go there."""
        self.note()
        return _JOINING_SHARE * self.interval

    def is_due(self, written_at: float) -> bool:
        """Whether a stream that was written then may be written again."""
        return not self.interval or self._monotonic() - written_at >= self.interval

    def next_round(self, write: Callable[[], None]) -> None:
        """Calls it with all others of the round, at most one interval from now."""
        self._round.join(write, self.interval)

    def next_beginnings(self, write: Callable[[], None]) -> None:
        """As `next_round`, of streams that have only begun."""
        self._beginnings.join(write, BEGINNING_SECONDS)


class _Round:
    """Writes that wait for one timer."""

    def __init__(self) -> None:
        self._writes: list[Callable[[], None]] = []

    def join(self, write: Callable[[], None], seconds: float) -> None:
        """`seconds` from now, if it is the first."""
        if not self._writes:
            asyncio.get_running_loop().call_later(seconds, self._begin)
        self._writes.append(write)

    def _begin(self) -> None:
        writes, self._writes = self._writes, []
        for write in writes:
            write()
