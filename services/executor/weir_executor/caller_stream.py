"""One caller's stream: its requests by handle, and what it has still to be told.

    commands ─▶ submit / abort ─▶ Admission
    steps    ─▶ hear_…  ─▶ ┌ StepMessage ┐ ─▶ next_message() ─▶ the wire
                           └ one, bounded ┘

While a message is being written, what is heard meanwhile comes together in the next one, and so it does between two
messages of a stream with many requests; see `StreamPace`. A caller that does not read
lets that one grow to its bound. Then its requests are aborted, the message is dropped, and the stream ends as soon as
the write under way does: gRPC has no means to end a call whose write is stuck. Neither engine nor neighbour waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from weir.executor.v1 import executor_pb2 as pb
from weir_chassis.errors import AlreadyExists, Draining, InvalidArgument, SlowConsumer, WeirError
from weir_chassis.limits import MAX_JOINED
from weir_executor.admission import Admission
from weir_executor.handoff.mapping import to_handoff
from weir_executor.handoff.table import HandoffTable
from weir_executor.live_requests import LiveRequest
from weir_executor.replies import to_finished, to_request_end, to_request_failed
from weir_executor.step_message import StepMessage
from weir_executor.step_output import RequestEnd, TokenOutput
from weir_executor.stream_pace import StreamPace


class CallerStream:
    """A `Listener`. Used from one event loop; `next_message` by one task."""

    def __init__(self, admission: Admission, handoffs: HandoffTable, max_buffered: int, pace: StreamPace) -> None:
        """`max_buffered` bounds what has not been written: tokens, log-probabilities and other entries.

        Needs a running event loop.
        """
        self._admission, self._handoffs, self._max_buffered = admission, handoffs, max_buffered
        self._by_handle: dict[int, LiveRequest] = {}
        self._last_words: list[int] = []  # handles whose last word is in `_message`
        self._message = StepMessage()
        self._wake = asyncio.Event()
        self._loop, self._pace = asyncio.get_running_loop(), pace
        self._alarm: asyncio.TimerHandle | None = None  # rings when what waits for its time is due
        self._half_closed = False
        self._draining = False
        self._error: Exception | None = None

    # ── commands ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, requests: AsyncIterator[pb.GenerateRequest]) -> None:
        """Does what the caller asks until it has no more to ask. What lives then goes on."""
        try:
            async for request in requests:
                self.command(request)
        except Exception as error:
            self.fail(error)
        self._half_closed = True
        self._wake.set()

    def command(self, request: pb.GenerateRequest) -> None:
        if len(request.more) > MAX_JOINED:
            self.fail(InvalidArgument("more", f"{len(request.more)} commands, the limit is {MAX_JOINED}"))
        self._do(request)
        for following in request.more:
            if following.more:
                self.fail(InvalidArgument("more.more", "a command that follows has none itself"))
            self._do(following)

    def _do(self, request: pb.GenerateRequest) -> None:
        if self._error is not None:
            return  # the stream is over, its caller just has not heard
        match request.WhichOneof("command"):
            case "submit":
                self._submit(request.submit)
            case "abort":
                self._abort(request.abort)
            case _:
                self.fail(InvalidArgument("command", "missing; submit or abort"))

    def _submit(self, submit: pb.Submit) -> None:
        try:
            if submit.handle in self._by_handle:
                raise AlreadyExists(str(submit.handle), f"a request with handle {submit.handle} lives on this stream")
            self._by_handle[submit.handle] = self._admission.submit(submit, self)
        except WeirError as error:
            self._message.add_failed(to_request_failed(submit.handle, error))
            self.flush()

    def _abort(self, abort: pb.Abort) -> None:
        live = self._by_handle.get(abort.handle)
        if live is not None and not live.told:
            self._admission.abort(live, abort.output_index if abort.HasField("output_index") else None)
        elif not abort.HasField("output_index"):
            self._handoffs.release_of(self, abort.handle)

    # ── what the engine says ──────────────────────────────────────────────────────────────────────────────────────────

    def hear_tokens(self, live: LiveRequest, output: TokenOutput) -> None:
        if not live.accepted:
            live.accepted = True
            self._message.add_accepted(live.handle)
        if output.token_ids:
            self._message.add_tokens(live.handle, output)
        if output.finish_reason is not None:
            self._message.add_finished(to_finished(live.handle, output, live.stop_token_ids))

    def hear_end(self, live: LiveRequest, end: RequestEnd) -> None:
        handoff = None if end.held_blocks is None else to_handoff(live.handoff, self._handoffs.lease_seconds)
        by_tier = live.source.tokens_by_tier(end) if live.source else None
        self._message.add_ended(to_request_end(live.handle, end, handoff, by_tier))
        self._told(live)

    def hear_failure(self, live: LiveRequest, error: Exception) -> None:
        self._message.add_failed(to_request_failed(live.handle, error))
        self._told(live)

    def flush(self) -> None:
        if self._message.size > self._max_buffered:
            waiting = f"{self._message.size} entries wait to be read, the limit is {self._max_buffered}"
            self._message = StepMessage()
            self.fail(SlowConsumer(f"the stream is read too slowly: {waiting}"))
        if self._due():
            self._wake.set()
        elif self._alarm is None:
            self._alarm = self._loop.call_at(self._due_at(), self._ring)

    def _due(self) -> bool:
        return self._message.urgent or self._error is not None or self._loop.time() >= self._due_at()

    def _due_at(self) -> float:
        return self._pace.due_at(len(self._by_handle))

    def _ring(self) -> None:
        self._alarm = None
        self._wake.set()

    def _told(self, live: LiveRequest) -> None:
        live.told = True
        self._last_words.append(live.handle)

    # ── what the caller reads ─────────────────────────────────────────────────────────────────────────────────────────

    async def next_message(self) -> pb.GenerateResponse | None:
        """Waits until there is something to say. None when all has been said and no more was asked.

        Raises the error with which the stream ends; Draining when the executor stops and nothing lives here any more.
        """
        while not (self._message and self._due()):
            if self._error is not None:
                raise self._error
            if not self._by_handle and self._draining and not self._handoffs.holds_of(self):
                raise Draining("the executor is shutting down")
            if not self._by_handle and self._half_closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._take()

    def _take(self) -> pb.GenerateResponse:
        message, self._message = self._message, StepMessage()
        self._pace.spoke(self._loop.time())
        # Only now may the caller know that they are free.
        for handle in self._last_words:
            del self._by_handle[handle]
        self._last_words.clear()
        return message.pack()

    # ── its end ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def fail(self, error: Exception) -> None:
        """Ends the stream with this error, after what is waiting to be said. What lives on it is aborted at once."""
        if self._error is None:
            self._error = error
            self._discard_all()
            self._wake.set()

    def drain(self) -> None:
        """Ends the stream as soon as nothing lives on it."""
        self._draining = True
        self._wake.set()

    def close(self) -> None:
        """The stream has ended, in whatever way: what still lives on it is aborted."""
        self._discard_all()
        self._by_handle.clear()
        self._handoffs.release_all_of(self)
        if self._alarm is not None:
            self._alarm.cancel()

    def _discard_all(self) -> None:
        for live in self._by_handle.values():
            if not live.told:
                self._admission.discard(live)
