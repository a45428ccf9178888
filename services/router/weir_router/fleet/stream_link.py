"""A worker with one stream that all requests on it share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Generic, Protocol, TypeVar

from weir_chassis.errors import NoWorker, WorkerLost
from weir_router.faults.uses import Uses
from weir_router.fleet.link import Link, LinkContext
from weir_router.fleet.views import WorkerState


class SharedStream(Protocol):
    # What its requests are told when it is taken down from outside.
    cause: str

    @property
    def num_live(self) -> int:
        """Requests on it."""
        ...

    def silent_seconds(self, now: float) -> float:
        """How long the worker has owed an answer without giving any."""
        ...


S = TypeVar("S", bound=SharedStream)


class StreamLink(Link, Generic[S]):
    def __init__(self, address: str, context: LinkContext):
        super().__init__(address, context)
        self._stream: S | None = None

    @property
    def stream(self) -> S:
        """Raises NoWorker when it is not connected."""
        if self._stream is None:
            raise NoWorker(f"{self.kind} {self.address} is not connected")
        return self._stream

    def uses(self) -> Uses:
        """For a new stream: what becomes of its requests is told to the worker's breaker."""
        breakers = self.context.breakers
        begin = None if breakers is None else partial(breakers.begin, self.address)
        return Uses(begin, lambda: self.state is WorkerState.DRAINING)

    def current_state(self) -> WorkerState:
        # The stream's end is known a moment before the rest of the link has been taken down.
        return super().current_state() if self._stream is not None else WorkerState.DOWN

    def is_idle(self) -> bool:
        return self._stream is None or not self._stream.num_live

    def silent_seconds(self) -> float:
        """How long it has owed an answer without giving any."""
        return 0.0 if self._stream is None else self._stream.silent_seconds(self.context.clock.monotonic())

    def is_stalled(self) -> bool:
        return self.silent_seconds() > self.context.settings.stall_seconds

    def check_silence(self) -> None:
        """A worker that owes answers and is silent is lost, however well its health says it is."""
        limit = self.context.settings.no_progress_seconds
        if self.silent_seconds() > limit:
            raise self.lost(f"it has made no progress for {limit:g} s")
        if self.is_stalled():
            self.eject()

    def lost(self, cause: str) -> WorkerLost:
        if self._stream is not None:
            self._stream.cause = cause
        return super().lost(cause)

    @contextmanager
    def connected(self, stream: S) -> Iterator[S]:
        self._stream = stream
        self.context.on_change()
        try:
            yield stream
        finally:
            self._stream = None
            self.context.on_change()
