"""One call that reads a log: from its place on, at its own pace, to the end.

It holds nothing but its place: what is not read yet waits in the log, and a reader that is slow holds nobody up. Deltas
that wait are merged per output, as they are for any client (`delivery`).
"""

from __future__ import annotations

import asyncio
from typing import Final

from weir.inference.v1.stream_pb2 import Delta
from weir.router.v1.retained_pb2 import RetainedEntry
from weir_chassis.errors import SlowConsumer, WeirError
from weir_router.delivery import Event, MergedDelta
from weir_router.retained.cut import Places
from weir_router.retained.entry import event_of
from weir_router.retained.log import RetainedLog

# Merged into one message per output at most: what a reader that begins late holds at a time.
_MAX_ENTRIES: Final = 256


class Reader:
    def __init__(self, log: RetainedLog, wanted: Places):
        """Raises NotFound when the log has dropped what is wanted."""
        self._log, self._cut = log, log.cut(wanted)
        self._position = 0
        self._dismissal: WeirError | None = None
        self._wake: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """The log has something new."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def dismiss(self, error: WeirError) -> None:
        """It is given nothing more, but this error."""
        self._dismissal = error
        self.wake()

    async def take(self) -> list[Event]:
        """What comes next, as soon as there is something; empty at the end.

        Raises the error with which the stream ended or the reader was dismissed, and SlowConsumer when the log had to
        drop what it had not read.
        """
        while True:
            if self._dismissal is not None:
                raise self._dismissal.with_traceback(None)  # others are told by the same
            if events := self._next():
                return events
            if self._position < len(self._log):
                continue  # all of these it had already
            if self._log.ended:
                return self._end()
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def _end(self) -> list[Event]:
        if self._log.error is not None:
            raise self._log.error.with_traceback(None)
        return []

    def _next(self) -> list[Event]:
        pending: list[Event | MergedDelta] = []
        open_deltas: dict[int, MergedDelta] = {}
        for data in self._log.read(self._position, _MAX_ENTRIES):
            self._position += 1
            if data is None:
                self._skip_dropped()
            elif (event := self._wanted(data)) is not None:
                _append(pending, open_deltas, event)
        return [event.message() if isinstance(event, MergedDelta) else event for event in pending]

    def _wanted(self, data: bytes) -> Event | None:
        event = event_of(RetainedEntry.FromString(data))
        return self._cut.rest(event) if isinstance(event, Delta) else event

    def _skip_dropped(self) -> None:
        if not self._cut.skip(self._log.dropped()):
            raise SlowConsumer("the stream grew beyond what is kept of it, and was read too slowly")


def _append(pending: list[Event | MergedDelta], open_deltas: dict[int, MergedDelta], event: Event) -> None:
    if not isinstance(event, Delta):
        open_deltas.clear()  # what comes after another event is not put before it
        pending.append(event)
    elif (merged := open_deltas.get(event.output_index)) is not None:
        merged.add(event)
    else:
        open_deltas[event.output_index] = merged = MergedDelta(event)
        pending.append(merged)
