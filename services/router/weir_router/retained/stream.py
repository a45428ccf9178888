"""One retained stream: its log, the task that writes it, the calls that read it, and until when it is kept.

    the pipeline ── write ──▶ log ──▶ reader ──▶ a call
                                └───▶ reader ──▶ another call with the same idempotency key

Times are monotonic seconds of the clock that is passed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
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
        # How often its readers have been dismissed, as all routers count it. None: not known yet.
        self.reader_number: int | None = None
        # How late a reader at another router is heard of; one that has been heard of is believed in until then.
        self.heard_after = 0.0
        self.read_elsewhere_until = 0.0
        self._clock, self._leases = clock, leases
        self._readers: list[Reader] = []
        self._left_at = clock.monotonic()
        self._ended_at: float | None = None

    async def write(self, events: Sequence[Event]) -> None:
        """As the pipeline writes to a client; never waits. What comes after the end is not wanted."""
        if not self.log.ended:
            for event in events:
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
        self.stop(cause)
        self.end(cause)

    def stop(self, cause: WeirError) -> None:
        """Runs it no further here. Its log is as it is."""
        if self.task is not None and not self.task.done():
            self.cause = self.cause or cause
            self.task.cancel()

    @contextmanager
    def reading(self, wanted: Places, *, alone: bool) -> Iterator[Reader]:
        """A reader from this place on, until it is left. `alone`: it takes the stream over from whoever reads it now.

        Raises NotFound when what it wants has been dropped.
        """
        reader = Reader(self.log, wanted)
        self.dismiss_readers(_another(), keep=0 if alone else _MAX_READERS - 1)
        self._readers.append(reader)
        with self._leases.acquire("retained_reader", self.name.request_id):
            try:
                yield reader
            finally:
                self._leave(reader)

    def note_reader(self, number: int) -> None:
        """So many have taken it over by now, at whichever router: whoever read it before is dismissed."""
        if self.reader_number is not None and number > self.reader_number:
            self.dismiss_readers(_another())
        self.reader_number = max(number, self.reader_number or 0)

    def dismiss_readers(self, cause: WeirError, *, keep: int = 0) -> None:
        """All but so many, the newest, end with this error."""
        for reader in self._readers[: max(0, len(self._readers) - keep)]:
            reader.dismiss(cause)
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
        since = self._ended_at
        if since is None:
            since = max(self._left_at + self.heard_after, self.read_elsewhere_until)
        return self._clock.monotonic() >= since + self.retention.seconds

    def _leave(self, reader: Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
            self._left_at = self._clock.monotonic()


def _another() -> Cancelled:
    return Cancelled("another call reads this stream now")
