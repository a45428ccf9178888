"""One retained stream: its log, the task that writes it, the calls that read it, and until when it is kept.

    the pipeline ── write ──▶ log ──▶ reader ──▶ a call
                                └───▶ reader ──▶ another call with the same idempotency key

Times are monotonic seconds of the clock that is passed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from weir_chassis.clock import Clock
from weir_chassis.errors import Cancelled, WeirError
from weir_chassis.leases import LeaseLedger
from weir_router.delivery import Event
from weir_router.retained.cut import Places
from weir_router.retained.log import RetainedLog
from weir_router.retained.options import Retention
from weir_router.retained.reader import Reader

# With one idempotency key, at once: a client that asks again and again. Beyond, the oldest ends with CANCELLED.
_MAX_READERS: Final = 8


class Name(NamedTuple):
    """A tenant's requests are its own: another's of the same id is another request."""

    tenant: str
    request_id: str


class RetainedStream:
    def __init__(self, name: Name, retention: Retention, max_bytes: int, clock: Clock, leases: LeaseLedger):
        self.name, self.retention = name, retention
        self.log = RetainedLog(max_bytes)
        # Runs the request, where it is run by this router.
        self.task: asyncio.Task[Any] | None = None
        # Why the task was cancelled, where it was by one of ours.
        self.cause: WeirError | None = None
        # A reader at another router has been heard of, and is believed in until then.
        self.read_elsewhere_until = 0.0
        self._clock, self._leases = clock, leases
        self._readers: list[Reader] = []
        self._left_at = clock.monotonic()
        self._ended_at: float | None = None

    async def write(self, event: Event) -> None:
        """As the pipeline writes to a client; never waits. What comes after the end is not wanted."""
        if not self.log.ended:
            self.log.add(event)
            self.wake()

    def end(self, error: WeirError | None) -> None:
        """Nothing is written any more. The first end counts."""
        if not self.log.ended:
            self.log.end(error)
            self.note_end()

    def note_end(self) -> None:
        """The log has ended, by `end` or as another router says."""
        self._ended_at = self._clock.monotonic()
        self.wake()

    def cancel(self, cause: WeirError) -> None:
        """Ends the request with this error, if it still runs."""
        if self.task is not None and not self.task.done():
            self.cause = self.cause or cause
            self.task.cancel()
        self.end(cause)

    @contextmanager
    def reading(self, wanted: Places, *, alone: bool) -> Iterator[Reader]:
        """A reader from this place on, until it is left. `alone`: it takes the stream over from whoever reads it now.

        Raises NotFound when what it wants has been dropped.
        """
        reader = Reader(self.log, wanted)
        self.dismiss_readers(keep=0 if alone else _MAX_READERS - 1)
        self._readers.append(reader)
        with self._leases.acquire("retained_reader", self.name.request_id):
            try:
                yield reader
            finally:
                self._leave(reader)

    def dismiss_readers(self, *, keep: int = 0) -> None:
        """All but the newest of these many end."""
        for reader in self._readers[: max(0, len(self._readers) - keep)]:
            reader.dismiss(Cancelled("another call reads this stream now"))
            self._leave(reader)

    def wake(self) -> None:
        for reader in self._readers:
            reader.wake()

    @property
    def read(self) -> bool:
        """Somebody reads it, here or elsewhere."""
        return bool(self._readers) or self._clock.monotonic() < self.read_elsewhere_until

    @property
    def read_here(self) -> bool:
        return bool(self._readers)

    def expired(self) -> bool:
        """Whether it has been kept long enough."""
        if self.read:
            return False
        since = max(self._left_at, self.read_elsewhere_until) if self._ended_at is None else self._ended_at
        return self._clock.monotonic() >= since + self.retention.seconds

    def _leave(self, reader: Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
            self._left_at = self._clock.monotonic()
