"""All of this router's requests on one executor, on one stream.

    submit, abort ──► one message for all that wait ──► executor
    sinks by handle ◄── one message per engine step, for all of them

A step's tokens are not taken apart: the whole batch goes on to the postprocess stream of its requests, and is split
only where the requests of one step are on several, or some have gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import grpc

from weir.executor.v1.executor_pb2 import (
    Abort,
    ExecutorOutputFinished,
    GenerateRequest,
    GenerateResponse,
    RequestEnd,
    Submit,
)
from weir.inference.v1.output_pb2 import RowLogprobs, TokenBatch
from weir_chassis.clock import Clock
from weir_chassis.errors import Internal, WeirError, WorkerLost
from weir_chassis.limits import MAX_JOINED
from weir_chassis.status import from_failure
from weir_router.faults.table import Where
from weir_router.faults.uses import Uses
from weir_router.streams import token_batch
from weir_router.streams.worker_stream import WorkerStream

# What goes out as one message. Many short commands fit, and none waits for long behind what is joined before it.
_MAX_JOINED_BYTES = 256 * 1024


class TokenLane(Protocol):
    """Where a request's tokens go on to."""

    def add_tokens(self, batch: TokenBatch) -> None: ...


class ExecutorSink(Protocol):
    """One request on the stream. It gets one of `on_ended` and `on_failed`, last, unless it is withdrawn before.

    Its methods must not raise and must not wait.
    """

    @property
    def lane(self) -> TokenLane: ...
    def on_accepted(self) -> None: ...
    def on_tokens(self, output_index: int, token_ids: Sequence[int]) -> None: ...
    def on_logprobs(self, output_index: int, row: RowLogprobs) -> None:
        """Of the tokens that came just before; only for a request that asked for them."""
        ...

    def on_finished(self, row: ExecutorOutputFinished) -> None: ...
    def on_ended(self, end: RequestEnd) -> None: ...
    def on_failed(self, error: WeirError) -> None: ...
    def on_stalled(self) -> None:
        """The executor is silent about everything; it may be told so again and again."""
        ...


Call = grpc.aio.StreamStreamCall[GenerateRequest, GenerateResponse]


class ExecutorStream(WorkerStream[GenerateRequest, GenerateResponse]):
    kind = "executor"

    def __init__(self, address: str, clock: Clock, uses: Uses | None = None, *, takes_more: bool = False):
        """`uses`: who is told what becomes of its requests. `takes_more`: the executor takes commands joined."""
        super().__init__(address)
        self._takes_more = takes_more
        self._clock, self._uses = clock, uses or Uses()
        self._sinks: dict[int, ExecutorSink] = {}
        # Handles of requests that have ended and left blocks for another executor, until they are withdrawn.
        self._handed_off: set[int] = set()
        # At most a submit and n + 1 aborts of each request since the executor stopped reading, and one that does so for
        # `no_progress_seconds` loses the stream.
        self._outgoing: deque[GenerateRequest] = deque()
        # Since when the executor has owed an answer without giving any; None: it owes none. A request that is withdrawn
        # is still owed its end, so that an executor which hangs is found out although every client gives up before.
        self._owing_since: float | None = None
        # When each request that has begun was last given anything.
        self._heard_at: dict[int, float] = {}

    @property
    def num_live(self) -> int:
        return len(self._sinks)

    def silent_seconds(self, now: float) -> float:
        """How long the executor has owed an answer without giving any."""
        return 0.0 if self._owing_since is None else now - self._owing_since

    def fail_stalled(self, limit_seconds: float) -> None:
        """Requests that have begun and have been given nothing for so long fail; their neighbours go on."""
        since = self._clock.monotonic() - limit_seconds
        for handle in [handle for handle, heard_at in self._heard_at.items() if heard_at < since]:
            sink, error = self._sinks[handle], self._lost(f"it has given this request nothing for {limit_seconds:g} s")
            self._uses.failed(handle, error, Where.STALL)
            self.withdraw(handle)
            sink.on_failed(error)

    def tell_stalled(self) -> None:
        """The executor owes answers and is silent about everything: its requests may look for another one beside it."""
        error = WorkerLost(f"executor {self.address} is silent", metadata={"worker": self.address})
        for handle, sink in list(self._sinks.items()):
            self._uses.failed(handle, error, Where.STALL)
            sink.on_stalled()

    def note_progress(self) -> None:
        """It has said something, or is known to have made a step."""
        self._owing_since = self._clock.monotonic() if self._sinks else None

    def submit(self, submit: Submit, sink: ExecutorSink) -> None:
        """Raises WorkerLost when the stream has ended."""
        if not self._open:
            raise self._lost("its stream has ended")
        assert submit.handle not in self._sinks, f"handle {submit.handle} lives"
        if self._owing_since is None:
            self._owing_since = self._clock.monotonic()
        self._sinks[submit.handle] = sink
        self._uses.begin(submit.handle, submit.model_version.model)
        self._send(GenerateRequest(submit=submit))

    def abort_output(self, handle: int, output_index: int) -> None:
        """Ends one output; its request lives on, and ends when all its outputs have."""
        if handle in self._sinks:
            self._send(GenerateRequest(abort=Abort(handle=handle, output_index=output_index)))

    def withdraw(self, handle: int) -> None:
        """Ends a request, if it lives, and gives back what it left; its sink hears nothing more."""
        if self._sinks.pop(handle, None) is not None or handle in self._handed_off:
            self._handed_off.discard(handle)
            self._uses.ended(handle)
            self._heard_at.pop(handle, None)
            self._send(GenerateRequest(abort=Abort(handle=handle)))

    def _send(self, message: GenerateRequest) -> None:
        if self._open:
            self._outgoing.append(message)
            self._duplex.wake()

    def _next_message(self) -> GenerateRequest | None:
        if not self._outgoing:
            return None
        message = self._outgoing.popleft()
        if self._outgoing and self._takes_more:
            self._join(message)
        return message

    def _join(self, message: GenerateRequest) -> None:
        """Takes along what waits behind it."""
        size = message.ByteSize()
        while self._outgoing and len(message.more) < MAX_JOINED:
            if (size := size + self._outgoing[0].ByteSize()) > _MAX_JOINED_BYTES:
                break
            message.more.append(self._outgoing.popleft())

    def _on_message(self, step: GenerateResponse) -> None:
        for handle in step.accepted_handles:
            if (sink := self._sinks.get(handle)) is not None:
                self._heard_at[handle] = self._clock.monotonic()
                sink.on_accepted()
        if step.tokens.handles:
            self._pass_tokens(step.tokens)
        for finished in step.finished:
            if (sink := self._sinks.get(finished.handle)) is not None:
                sink.on_finished(finished)
        for end in step.ended:
            if (sink := self._pop(end.handle)) is not None:
                if end.handoff.num_blocks:
                    self._handed_off.add(end.handle)
                self._uses.succeeded(end.handle)
                sink.on_ended(end)
        for failed in step.failed:
            if (sink := self._pop(failed.handle)) is not None:
                error = from_failure(failed.failure)
                self._uses.failed(failed.handle, error)
                sink.on_failed(error)
        self.note_progress()

    def _pass_tokens(self, batch: TokenBatch) -> None:
        if not token_batch.is_well_formed(batch):
            raise Internal("the worker sent a batch whose columns disagree")
        lanes: list[TokenLane | None] = []
        token_ids, start, now = list(batch.token_ids), 0, self._clock.monotonic()
        for handle, output_index, count in zip(batch.handles, batch.output_indexes, batch.token_counts, strict=True):
            sink = self._sinks.get(handle)
            if sink is not None:
                self._heard_at[handle] = now
                sink.on_tokens(output_index, token_ids[start : start + count])
            lanes.append(sink.lane if sink is not None else None)
            start += count
        for entry in batch.logprobs:
            if (sink := self._sinks.get(batch.handles[entry.row])) is not None:
                sink.on_logprobs(batch.output_indexes[entry.row], entry)
        first = lanes[0]
        if first is not None and lanes.count(first) == len(lanes):
            first.add_tokens(batch)
            return
        for lane, part in token_batch.split(batch, lanes).items():
            lane.add_tokens(part)

    def _fail_all(self) -> None:
        sinks, self._sinks = self._sinks, {}
        self._outgoing.clear()
        self._handed_off.clear()
        self._heard_at.clear()
        error = self._uses.lost(self._lost(self.cause))
        for sink in sinks.values():
            sink.on_failed(error)

    def _pop(self, handle: int) -> ExecutorSink | None:
        self._heard_at.pop(handle, None)
        return self._sinks.pop(handle, None)
