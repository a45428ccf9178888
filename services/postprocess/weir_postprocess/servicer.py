"""Postprocess over gRPC: reads a message, applies it to the stream's session, writes what there is to say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
from prometheus_client import Counter

from weir.postprocess.v1.postprocess_pb2 import PostprocessRequest, PostprocessResponse
from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceServicer
from weir_chassis.errors import Draining
from weir_chassis.leases import Lease, LeaseLedger
from weir_chassis.metrics import Metrics
from weir_chassis.slow_consumer import write_within
from weir_chassis.telemetry import current_request
from weir_postprocess.session import Session
from weir_postprocess.vocabulary import Vocabulary

# A row of one token takes about 10 µs (30 with log-probabilities), less than the hop to a thread and back, so rows are
# worked on the event loop. A message of more than this many tokens or characters of stop strings takes some 10 ms and
# would be felt by the other streams: that is a request that resumes long outputs, or a burst.
_MAX_COST_ON_LOOP: Final = 4096
_DRAINING: Final = "the service is shutting down and no request is open on this stream"


@dataclass(frozen=True, slots=True)
class StreamLimits:
    max_open_requests: int
    slow_consumer_seconds: float


class PostprocessServicer(PostprocessServiceServicer):
    def __init__(
        self, vocabularies: Mapping[str, Vocabulary], limits: StreamLimits, leases: LeaseLedger, metrics: Metrics
    ):
        self._vocabularies, self._limits, self._leases = vocabularies, limits, leases
        self._counters = _Counters(metrics)
        self._streams: set[_Stream] = set()

    async def Postprocess(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        """Reads and writes by the context and not by iterators, so that a read can be ended and a write be timed."""
        with self._stream() as stream:
            while (message := await stream.read(context)) is not None:
                response = await _apply(stream.session, message)
                stream.book()
                self._counters.count(message, response)
                if response is not None:
                    await write_within(context, response, self._limits.slow_consumer_seconds)

    async def drain(self) -> None:
        """Ends the streams that have no request open; the others end with their last one and open none."""
        for stream in self._streams:
            stream.drain()

    @contextmanager
    def _stream(self) -> Iterator[_Stream]:
        stream = _Stream(Session(self._vocabularies, self._limits.max_open_requests), self._leases)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            stream.close()


class _Stream:
    """A session, the leases of its requests, and the read that a drain may have to end."""

    def __init__(self, session: Session, leases: LeaseLedger):
        self.session = session
        self._ledger = leases
        self._leases: dict[int, Lease] = {}
        self._owner = request.request_id if (request := current_request()) else "stream"
        self._reading: asyncio.Timeout | None = None

    async def read(self, context: Any) -> PostprocessRequest | None:
        """The next message; None when the caller has no more. Raises Draining."""
        if self._drained:
            raise Draining(_DRAINING)
        try:
            async with asyncio.timeout(None) as self._reading:
                message = await context.read()
        except TimeoutError:
            raise Draining(_DRAINING) from None
        finally:
            self._reading = None
        return None if message is grpc.aio.EOF else message

    def book(self) -> None:
        """A lease for each request that is open now."""
        changes = self.session.take_changes()
        for handle in changes.opened:
            self._leases[handle] = self._ledger.acquire("postprocess_request", self._owner)
        for handle in changes.forgotten:
            self._leases.pop(handle).release()

    def drain(self) -> None:
        self.session.draining = True
        if self._drained and self._reading is not None:
            self._reading.reschedule(0.0)

    def close(self) -> None:
        for lease in self._leases.values():
            lease.release()

    @property
    def _drained(self) -> bool:
        return self.session.draining and not self.session.handles


class _Counters:
    def __init__(self, metrics: Metrics):
        self._tokens: Counter = metrics.counter("tokens", "Tokens taken in")
        self._stops: Counter = metrics.counter("stops", "Outputs that a stop string ended")
        self._failures: Counter = metrics.counter("failed_requests", "Requests that failed by themselves")

    def count(self, message: PostprocessRequest, response: PostprocessResponse | None) -> None:
        self._tokens.inc(len(message.tokens.token_ids))
        if response is not None and response.finished:
            self._stops.inc(sum(finished.HasField("stop") for finished in response.finished))
        if response is not None and response.failed:
            self._failures.inc(len(response.failed))


async def _apply(session: Session, message: PostprocessRequest) -> PostprocessResponse | None:
    if _cost(message) > _MAX_COST_ON_LOOP:
        return await asyncio.to_thread(session.apply, message)
    return session.apply(message)


def _cost(message: PostprocessRequest) -> int:
    """In tokens that are looked at, be they drawn, resumed or only likely, and characters of stop strings."""
    cost = len(message.tokens.token_ids) + sum(len(row.top_token_ids) for row in message.tokens.logprobs)
    for opened in message.opens:
        cost += sum(map(len, opened.stop)) + sum(len(output.token_ids) for output in opened.resumed_outputs)
    return cost
