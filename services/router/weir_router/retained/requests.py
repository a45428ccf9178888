"""The door to retained streams: a request runs beside the call that began it, and calls read what it has said.

    answer   a call's request: as the pipeline runs it; beside the call, when its stream is to be kept
    resume   the rest of a kept stream, whichever router runs it
    cancel   its end

A request that is not to be kept goes through unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from weir.router.v1.retained_pb2 import RetainedPrompt, RetainedRequest
from weir.router.v1.router_pb2 import GenerateRequest
from weir_chassis.background import Background
from weir_chassis.clock import Clock
from weir_chassis.errors import AlreadyExists, Cancelled, Draining, Internal, NotFound, WeirError, WorkerLost
from weir_chassis.leases import LeaseLedger
from weir_chassis.observed import translate
from weir_chassis.telemetry import get_logger
from weir_router.keeping import Begun, Drawing, Keeping
from weir_router.metrics import RouterMetrics
from weir_router.pipeline import Run, Write
from weir_router.request import ClientRequest, EncodedPrompt
from weir_router.retained.cut import Places
from weir_router.retained.history import begun_of, prompt_of
from weir_router.retained.kept import KeptStreams, already_exists
from weir_router.retained.options import Body, Retention, RetentionLimits, retention_of
from weir_router.retained.sharing import Found, Sharing
from weir_router.retained.stream import Name, RetainedStream

# How late a stream may be forgotten, and how long its bytes may be over the limit.
_SWEEP_SECONDS: Final = 0.25


class RetainedRequests:
    """`run` runs a request to its end, or on from where it has come to; `recompose` makes one anew of what is kept."""

    def __init__(
        self,
        run: Run,
        recompose: Callable[[RetainedRequest], ClientRequest],
        sharing: Sharing,
        limits: RetentionLimits,
        *,
        clock: Clock,
        leases: LeaseLedger,
        background: Background,
        metrics: RouterMetrics,
    ):
        self._run, self._recompose, self._sharing, self._limits = run, recompose, sharing, limits
        self._clock, self._leases, self._background, self._metrics = clock, leases, background, metrics
        self._kept = KeptStreams(limits, clock, leases, metrics)
        sharing.keeper = self
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = 0

    async def answer(self, body: Body, request: ClientRequest, write: Write, left_seconds: float | None) -> None:
        """Writes the request's events, or raises a WeirError, as the pipeline does."""
        retention = retention_of(body, self._limits)
        if retention is None:
            await self._run(request, write, left_seconds)
            return
        stream = self._find_same(request.tenant, retention)
        if stream is None:
            stream = self._keep(Name(request.tenant, request.request_id), retention)
            record = self._record(body, request, retention, left_seconds)
            self._start(stream, self._begin(stream, record, request, left_seconds))
        await _read(stream, {}, write, alone=False)

    async def resume(self, name: Name, wanted: Places, write: Write) -> None:
        """Writes what is wanted of a stream, to its end, as whoever began it would be given it.

        Raises NotFound; Cancelled when it is taken over; WorkerLost when nobody can tell now; and the stream's own end.
        """
        reader_number = await self._sharing.attend(name)
        stream = self._kept.find(name) or await self._follow(name, reader_number)
        stream.note_reader(reader_number or 0)
        self._metrics.resumes.inc()
        await _read(stream, wanted, write, alone=True)

    async def cancel(self, name: Name) -> None:
        """Raises NotFound, and WorkerLost when nobody can tell now."""
        stream = self._kept.find(name)
        if stream is not None and (stream.task is not None or stream.log.ended):
            stream.cancel(_cancelled())
            return
        known = await self._sharing.cancel(name)
        if known is None:
            raise _away()
        if not known:
            raise _not_found(name)

    async def sweep(self) -> None:
        """Forgets what has been kept long enough. For ever."""
        while True:
            await self._clock.sleep(_SWEEP_SECONDS)
            for stream in self._kept.expired():
                stream.cancel(Cancelled(f"nobody read it for {stream.retention.seconds:g} s"))
                self._forget(stream)
            self._kept.fit()

    async def drain(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()

    async def close(self) -> None:
        """Gives everything back. Whoever still ran has been cancelled."""
        await self._sharing.close()
        for stream in self._kept:
            self._kept.forget(stream)

    # A Keeper of shared streams.

    def go_on(self, stream: RetainedStream, request: RetainedRequest, prompt: RetainedPrompt | None) -> None:
        retention = Retention(request.retain.ToTimedelta().total_seconds(), stream.retention.key, b"")
        stream.retention = retention if not stream.retention.key else stream.retention
        if prompt is None and stream.log.accepted:
            stream.end(WorkerLost("the router that ran this request was lost, and its worker told no tokens"))
            return
        begun = None if prompt is None else begun_of(stream.log.entries(), prompt)
        self._start(stream, self._run_on(stream, request, begun))

    def let_go(self, stream: RetainedStream, cause: WeirError) -> None:
        stream.stop(cause)
        stream.dismiss_readers(cause)
        self._kept.forget(stream)

    # Finding.

    def _find_same(self, tenant: str, retention: Retention) -> RetainedStream | None:
        """The stream that this idempotency key began. Raises AlreadyExists when it is another request's."""
        stream = self._kept.find_key(tenant, retention.key)
        if stream is not None and stream.retention.fingerprint != retention.fingerprint:
            raise _other_request(retention.key, stream.name.request_id)
        return stream

    async def _follow(self, name: Name, reader_number: int | None) -> RetainedStream:
        found = await self._sharing.find(name) if reader_number else Found("gone")
        if reader_number is None or found is None:
            raise _away()
        if (stream := self._kept.find(name)) is not None:
            return stream  # another call has found it meanwhile
        if found.state == "gone":
            raise _not_found(name)
        stream = self._keep(name, Retention(0.0, "", b""))
        self._sharing.follow(stream, name, found)
        return stream

    def _keep(self, name: Name, retention: Retention) -> RetainedStream:
        stream = RetainedStream(name, retention, self._limits.max_stream_bytes, self._clock, self._leases)
        self._kept.add(stream)
        return stream

    def _record(
        self, body: Body, request: ClientRequest, retention: Retention, left_seconds: float | None
    ) -> RetainedRequest:
        record = RetainedRequest(
            request_id=request.request_id,
            tenant=request.tenant,
            generate=body if isinstance(body, GenerateRequest) else None,
            chat=None if isinstance(body, GenerateRequest) else body,
            seed=request.sampling.seed,
            subject=request.subject,
            via=request.via,
        )
        record.retain.FromNanoseconds(round(retention.seconds * 1e9))
        if left_seconds is not None:
            record.expires_at.FromNanoseconds(round((self._clock.time() + left_seconds) * 1e9))
        return record

    # Running, beside every call: what it comes to is in the log.

    def _start(self, stream: RetainedStream, work: Coroutine[Any, Any, None]) -> None:
        self._running += 1
        self._idle.clear()
        name = f"retained-{stream.name.request_id}"
        stream.task = self._background.start(self._to_its_end(stream, work), name=name)
        stream.task.add_done_callback(self._done)

    def _done(self, _: asyncio.Task[None]) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def _to_its_end(self, stream: RetainedStream, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            self._note_stop(stream)
            raise
        except Exception as failure:
            error = translate(failure)
            if isinstance(error, Internal):
                get_logger().error("retained_request_failed", exc_info=failure)
            await self._note_failure(stream, error)

    async def _begin(
        self, stream: RetainedStream, record: RetainedRequest, request: ClientRequest, left_seconds: float | None
    ) -> None:
        """Raises AlreadyExists when another router has its id, or its key for another request."""
        began = await self._sharing.begin(stream, record, request.residency)
        if began.began:
            await self._run_to_end(stream, request, left_seconds, None)
        elif not began.name:
            raise already_exists(stream.name)
        elif began.fingerprint != stream.retention.fingerprint:
            raise _other_request(stream.retention.key, began.request_id)
        else:
            stream.task = None  # another router's
            self._sharing.follow(stream, Name(stream.name.tenant, began.request_id))

    async def _run_on(self, stream: RetainedStream, record: RetainedRequest, begun: Begun | None) -> None:
        left_seconds = None
        if record.HasField("expires_at"):
            left_seconds = max(0.0, record.expires_at.ToNanoseconds() / 1e9 - self._clock.time())
        await self._run_to_end(stream, self._recompose(record), left_seconds, begun)

    async def _run_to_end(
        self, stream: RetainedStream, request: ClientRequest, left_seconds: float | None, begun: Begun | None
    ) -> None:
        def note_prompt(prompt: EncodedPrompt, drawing: Drawing) -> None:
            self._sharing.note_prompt(stream, prompt_of(prompt, drawing))

        kept = replace(request, keeping=Keeping(begun, note_prompt))
        await self._run(kept, stream.write, left_seconds)
        stream.end(None)

    def _note_stop(self, stream: RetainedStream) -> None:
        """By one of ours, or because the router shuts down: another one may then go on with it."""
        cause = stream.cause or Draining("the router shut down before this request was done")
        if stream.cause is None and self._sharing.owns(stream):
            stream.dismiss_readers(cause)
        else:
            stream.end(cause)

    async def _note_failure(self, stream: RetainedStream, error: WeirError) -> None:
        """What was refused has not begun, and what may succeed when it is tried again may be tried again."""
        try:
            if not stream.log.accepted:
                self._forget(stream)
                await self._sharing.tell_forgotten()
            elif error.row.retryable:
                self._kept.free_key(stream)
                await self._sharing.fail(stream)
        finally:
            stream.end(error)

    def _forget(self, stream: RetainedStream) -> None:
        self._kept.forget(stream)
        self._sharing.forget(stream)


async def _read(stream: RetainedStream, wanted: Places, write: Write, *, alone: bool) -> None:
    with stream.reading(wanted, alone=alone) as reader:
        while events := await reader.take():
            await write(events)


def _not_found(name: Name) -> NotFound:
    return NotFound(name.request_id, f"no retained request {name.request_id!r} here")


def _cancelled() -> Cancelled:
    return Cancelled("the request was cancelled by CancelRequest")


def _away() -> WorkerLost:
    return WorkerLost("the store of retained streams does not answer")


def _other_request(key: str, began: str) -> AlreadyExists:
    message = f"routing.idempotency_key: {key!r} has begun another request"
    return AlreadyExists(key, message, metadata={"field": "routing.idempotency_key", "request_id": began})
