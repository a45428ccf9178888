"""All of this router's requests on one postprocess replica, on one stream, a message per engine step.

What comes in during one turn of the event loop, or while an earlier message is still being written, goes out as one
message. Handles are never used twice, so joining messages cannot mix two requests.
"""

from __future__ import annotations

from typing import Protocol

import grpc

from weir.inference.v1.output_pb2 import FinishReason, TokenBatch
from weir.inference.v1.stream_pb2 import Delta
from weir.postprocess.v1.postprocess_pb2 import (
    Finish,
    Open,
    PostprocessOutputFinished,
    PostprocessRequest,
    PostprocessResponse,
)
from weir_chassis.clock import Clock
from weir_chassis.errors import Internal, WeirError
from weir_chassis.status import from_failure
from weir_router.faults.uses import Uses
from weir_router.fleet.changes import Changes
from weir_router.streams import token_batch
from weir_router.streams.worker_stream import WorkerStream

# A replica that has not taken so many tokens has stopped reading. At 4 bytes each they are no burden, and at 256
# running requests they are many seconds' worth.
_MAX_UNSENT_TOKENS = 65_536


class TextSink(Protocol):
    """One request on the stream. Its methods must not raise and must not wait."""

    def on_delta(self, delta: Delta, now: float) -> None: ...
    def on_text_finished(self, row: PostprocessOutputFinished) -> None: ...
    def on_text_failed(self, error: WeirError) -> None: ...


Call = grpc.aio.StreamStreamCall[PostprocessRequest, PostprocessResponse]


class PostprocessStream(WorkerStream[PostprocessRequest, PostprocessResponse]):
    kind = "postprocess"

    def __init__(self, address: str, clock: Clock, changes: Changes | None = None, uses: Uses | None = None):
        """`changes`: where it is noted that `num_live` is another now. `uses`: who is told what becomes of requests."""
        super().__init__(address)
        self._clock, self._changes, self._uses = clock, changes or Changes(), uses or Uses()
        self._sinks: dict[int, TextSink] = {}
        # Outputs whose finish was sent and has not come back, and when it was.
        self._finishing: dict[tuple[int, int], float] = {}
        self._unsent = PostprocessRequest()
        self._has_unsent = False
        # Of its tokens, those that executors have just drawn.
        self._unsent_tokens = 0
        self._call: Call | None = None

    @property
    def num_live(self) -> int:
        return len(self._sinks)

    def silent_seconds(self, now: float) -> float:
        """How long the oldest output that was finished has not been answered: the one answer that is always owed."""
        oldest = next(iter(self._finishing.values()), now)
        return now - oldest

    async def run(self, call: Call) -> None:
        self._call = call
        await super().run(call)

    def open(self, request: Open, sink: TextSink) -> None:
        """Raises WorkerLost when the stream has ended."""
        if not self._open:
            raise self._lost("its stream has ended")
        assert request.handle not in self._sinks, f"handle {request.handle} lives"
        self._sinks[request.handle] = sink
        self._uses.begin(request.handle)
        self._changes.of_counts += 1
        self._unsent.opens.append(request)
        self._has_unsent = True
        # It says nothing that anybody waits for. Where others are being answered it goes along with what is said next
        # of any of them, at the latest with its own first tokens: a message costs the same whatever is in it.
        if len(self._sinks) == 1:
            self._wake()

    def add_tokens(self, batch: TokenBatch) -> None:
        if not self._open:
            return  # its requests have been told
        token_batch.append(self._unsent.tokens, batch)
        self._wake()
        self._unsent_tokens += len(batch.token_ids)
        if self._unsent_tokens > _MAX_UNSENT_TOKENS and self._call is not None:
            self._call.cancel()

    def replay(self, batch: TokenBatch) -> None:
        """As `add_tokens`, of what another replica was given before: many requests may come at once, and it is no
        sign that this one has stopped reading."""
        if self._open and batch.handles:
            token_batch.append(self._unsent.tokens, batch)
            self._wake()

    def finish(
        self, handle: int, output_index: int, reason: FinishReason.ValueType, *, ends_with_stop_token: bool
    ) -> None:
        """No more tokens will come for this output."""
        if handle not in self._sinks:
            return
        row = Finish(
            handle=handle,
            output_index=output_index,
            finish_reason=reason,
            ends_with_stop_token=ends_with_stop_token,
        )
        self._unsent.finishes.append(row)
        self._finishing[handle, output_index] = self._clock.monotonic()
        self._wake()

    def close(self, handle: int) -> None:
        """Forgets a request, if it lives; its sink hears nothing more."""
        self._uses.ended(handle)
        if self._drop(handle) and self._open:
            self._unsent.closed_handles.append(handle)
            self._wake()

    def done(self, handle: int) -> None:
        """Every output of the request has come back, so the replica has forgotten it by itself."""
        self._uses.succeeded(handle)
        self._drop(handle)

    def _drop(self, handle: int) -> bool:
        for key in [key for key in self._finishing if key[0] == handle]:
            del self._finishing[key]
        self._changes.of_counts += 1
        return self._sinks.pop(handle, None) is not None

    def _wake(self) -> None:
        self._has_unsent = True
        self._duplex.wake()

    def _next_message(self) -> PostprocessRequest | None:
        if not self._has_unsent:
            return None
        message, self._unsent, self._has_unsent = self._unsent, PostprocessRequest(), False
        self._unsent_tokens = 0
        return message

    def _on_message(self, message: PostprocessResponse) -> None:
        now = self._clock.monotonic()
        if len(message.handles) != len(message.deltas):
            raise Internal("the worker sent deltas without their handles")
        for handle, delta in zip(message.handles, message.deltas, strict=True):
            if (sink := self._sinks.get(handle)) is not None:
                sink.on_delta(delta, now)
        for row in message.finished:
            self._finishing.pop((row.handle, row.output_index), None)
            if (sink := self._sinks.get(row.handle)) is not None:
                sink.on_text_finished(row)
        for failed in message.failed:
            sink, error = self._sinks.get(failed.handle), from_failure(failed.failure)
            self._uses.failed(failed.handle, error)
            self._drop(failed.handle)
            if sink is not None:
                sink.on_text_failed(error)

    def _fail_all(self) -> None:
        sinks, self._sinks = self._sinks, {}
        self._finishing.clear()
        self._unsent, self._has_unsent = PostprocessRequest(), False
        error = self._uses.lost(self._lost(self.cause))
        for sink in sinks.values():
            sink.on_text_failed(error)
