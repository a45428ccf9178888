"""The door to retained streams: a request runs beside the call that began it, and calls read what it has said.

    answer   a call's request: as the pipeline runs it; beside the call, when its stream is to be kept
    resume   the rest of a kept stream
    cancel   its end

A request that is not to be kept goes through unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from weir_chassis.background import Background
from weir_chassis.clock import Clock
from weir_chassis.errors import AlreadyExists, Cancelled, Draining, Internal, NotFound, WeirError
from weir_chassis.interceptors import translate
from weir_chassis.leases import LeaseLedger
from weir_chassis.telemetry import get_logger
from weir_router.delivery import Event
from weir_router.metrics import RouterMetrics
from weir_router.request import ClientRequest
from weir_router.retained.cut import Places
from weir_router.retained.kept import KeptStreams
from weir_router.retained.options import Body, Retention, RetentionLimits, retention_of
from weir_router.retained.stream import Name, RetainedStream

Write = Callable[[Event], Awaitable[None]]
Run = Callable[[ClientRequest, Write, float | None], Awaitable[None]]

# How late a stream may be forgotten, and how long its bytes may be over the limit.
_SWEEP_SECONDS: Final = 0.25


class RetainedRequests:
    """`run` runs a request to its end, and writes its events: the pipeline's."""

    def __init__(
        self,
        run: Run,
        limits: RetentionLimits,
        *,
        clock: Clock,
        leases: LeaseLedger,
        background: Background,
        metrics: RouterMetrics,
    ):
        self._run, self._limits = run, limits
        self._clock, self._leases, self._background, self._metrics = clock, leases, background, metrics
        self._kept = KeptStreams(limits, clock, leases, metrics)
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = 0

    async def answer(self, body: Body, request: ClientRequest, write: Write, left_seconds: float | None) -> None:
        """Writes the request's events, or raises a WeirError, as the pipeline does."""
        retention = retention_of(body, self._limits)
        if retention is None:
            await self._run(request, write, left_seconds)
            return
        stream = self._find_same(request.tenant, retention) or self._begin(request, retention, left_seconds)
        await _read(stream, {}, write, alone=False)

    async def resume(self, name: Name, wanted: Places, write: Write) -> None:
        """Writes what is wanted of a stream, to its end. Raises NotFound, Cancelled when taken over, and its end."""
        stream = self._find(name)
        self._metrics.resumes.inc()
        await _read(stream, wanted, write, alone=True)

    async def cancel(self, name: Name) -> None:
        """Raises NotFound."""
        self._find(name).cancel(Cancelled("the request was cancelled by CancelRequest"))

    async def sweep(self) -> None:
        """Forgets what has been kept long enough. For ever."""
        while True:
            await self._clock.sleep(_SWEEP_SECONDS)
            for stream in self._kept.expired():
                self._forget(stream, Cancelled(f"nobody read it for {stream.retention.seconds:g} s"))
            self._kept.fit()

    async def drain(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()

    def close(self) -> None:
        """Gives everything back. Whoever still ran has been cancelled."""
        for stream in self._kept:
            self._forget(stream, Draining("the router has shut down"))

    def _find(self, name: Name) -> RetainedStream:
        stream = self._kept.find(name)
        if stream is None:
            raise NotFound(name.request_id, f"no retained request {name.request_id!r} here")
        return stream

    def _find_same(self, tenant: str, retention: Retention) -> RetainedStream | None:
        """The stream that this idempotency key began. Raises AlreadyExists when it is another request's."""
        stream = self._kept.find_key(tenant, retention.key)
        if stream is not None and stream.retention.fingerprint != retention.fingerprint:
            raise _other_request(retention.key, stream.name)
        return stream

    def _begin(self, request: ClientRequest, retention: Retention, left_seconds: float | None) -> RetainedStream:
        name = Name(request.tenant, request.request_id)
        stream = RetainedStream(name, retention, self._limits.max_stream_bytes, self._clock, self._leases)
        self._kept.add(stream)
        self._start(stream, request, left_seconds)
        return stream

    def _start(self, stream: RetainedStream, request: ClientRequest, left_seconds: float | None) -> None:
        self._running += 1
        self._idle.clear()
        work = self._carry_out(stream, request, left_seconds)
        stream.task = self._background.start(work, name=f"retained-{stream.name.request_id}")
        stream.task.add_done_callback(self._done)

    def _done(self, _: asyncio.Task[None]) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def _carry_out(self, stream: RetainedStream, request: ClientRequest, left_seconds: float | None) -> None:
        """Beside every call: what it comes to is in the log."""
        error: WeirError | None = Draining("the router shut down before this request was done")
        try:
            await self._run(request, stream.write, left_seconds)
            error = None
        except asyncio.CancelledError:
            error = stream.cause or error
            raise
        except Exception as failure:
            error = translate(failure)
            if isinstance(error, Internal):
                get_logger().error("retained_request_failed", exc_info=failure)
        finally:
            stream.end(error)
            if error is not None:
                self._note_failure(stream, error)

    def _note_failure(self, stream: RetainedStream, error: WeirError) -> None:
        """What was refused has not begun, and what may succeed when it is tried again may be tried again."""
        if not stream.log.accepted:
            self._kept.forget(stream)
        elif error.row.retryable:
            self._kept.free_key(stream)

    def _forget(self, stream: RetainedStream, cause: WeirError) -> None:
        stream.cancel(cause)
        self._kept.forget(stream)


async def _read(stream: RetainedStream, wanted: Places, write: Write, *, alone: bool) -> None:
    with stream.reading(wanted, alone=alone) as reader:
        while events := await reader.take():
            for event in events:
                await write(event)


def _other_request(key: str, began: Name) -> AlreadyExists:
    message = f"routing.idempotency_key: {key!r} has begun another request"
    metadata = {"field": "routing.idempotency_key", "request_id": began.request_id}
    return AlreadyExists(key, message, metadata=metadata)
