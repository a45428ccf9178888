"""What waits for one client: sent at once when its stream is idle, merged while an earlier message is being written.

While the event loop is busy, a stream that was just written waits for the next round of writes; see `write_pace.py`.

The outbox holds at most one delta per output, however many came, so a slow client costs memory by its tokens and not by
its messages; when even these are too many its request ends, and nobody else's waits.
"""

from __future__ import annotations

import asyncio

from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.stream_pb2 import (
    Accepted,
    Continued,
    Delta,
    OutputFinished,
    Receipt,
    TokenLogprob,
    ToolCallDelta,
)
from weir_chassis.errors import SlowConsumer, WeirError
from weir_router.write_pace import WritePace

Event = Accepted | Delta | Continued | OutputFinished | Usage | Receipt


class MergedDelta:
    """Deltas of one output as one. The first is kept as it came: mostly it stays the only one."""

    __slots__ = ("_first", "_logprobs", "_texts", "_token_ids", "_tool_calls")

    def __init__(self, first: Delta):
        self._first = first
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._tool_calls: list[ToolCallDelta] = []

    def add(self, delta: Delta) -> None:
        # Copied out, so that the message in which it came, with everybody's deltas, can be freed.
        self._token_ids.extend(delta.token_ids)
        self._texts.append(delta.text)
        for entry in delta.logprobs:
            copy = TokenLogprob()
            copy.CopyFrom(entry)
            self._logprobs.append(copy)
        for call in delta.tool_calls:
            self._tool_calls.append(ToolCallDelta.FromString(call.SerializeToString()))

    def message(self) -> Delta:
        if not self._texts:
            return self._first
        merged = Delta()
        merged.CopyFrom(self._first)
        merged.token_ids.extend(self._token_ids)
        merged.text += "".join(self._texts)
        merged.logprobs.extend(self._logprobs)
        merged.tool_calls.extend(self._tool_calls)
        return merged


class Outbox:
    """One request's events on their way to its client. Filled by callbacks, emptied by the client's own task."""

    def __init__(self, max_pending_tokens: int, pace: WritePace):
        self._max_pending_tokens, self._pace = max_pending_tokens, pace
        self._pending: list[Event | MergedDelta] = []
        # The delta of each output to which later ones are added.
        self._open: dict[int, MergedDelta] = {}
        self._pending_tokens = 0
        self._error: WeirError | None = None
        self._closed = False
        self._interrupted = False
        # Something is pending that is neither the beginning nor a delta.
        self._is_urgent = False
        self._wake: asyncio.Future[None] | None = None
        # When a delta was last taken: monotonic seconds.
        self._taken_at = float("-inf")
        # It waits for the next round of writes, or of beginnings, or has its turn in one.
        self._waits = self._waits_to_begin = self._has_turn = False

    @property
    def closed(self) -> bool:
        """Nothing can be added any more."""
        return self._closed

    @property
    def error(self) -> WeirError | None:
        return self._error

    def add(self, event: Event) -> None:
        """Anything but a delta. What comes after it is not merged with what came before."""
        assert not self._closed
        self._open.clear()
        self._pending.append(event)
        self._is_urgent = True
        self._notify()

    def begin(self, accepted: Accepted) -> None:
        """The first event. While the loop is busy it waits for the first delta, to go out with it."""
        assert not self._closed
        self._pending.append(accepted)
        self._pace.note()  # after a while without writes it knows how busy the loop was, and not how busy it is
        if self._wake is not None and self._may_go():
            self._notify()

    def add_delta(self, delta: Delta, count: int) -> None:
        """`count` is the number of its tokens. The outbox closes with SlowConsumer when it would hold too many."""
        assert not self._closed
        self._pending_tokens += count
        if self._pending_tokens > self._max_pending_tokens:
            self._overflow()
            return
        if (merged := self._open.get(delta.output_index)) is not None:
            merged.add(delta)
        else:
            self._open[delta.output_index] = merged = MergedDelta(delta)
            self._pending.append(merged)
        if self._wake is not None and self._may_go():
            self._notify()

    def close(self, error: WeirError | None = None) -> None:
        """No more events. What is pending can still be taken; after it, `take` raises the error, if there is one."""
        if not self._closed:
            self._closed, self._error = True, error
            self._notify()

    def interrupt(self) -> None:
        """Whoever takes is to look at something else, too."""
        self._interrupted = True
        self._notify()

    async def take(self) -> list[Event]:
        """Everything that is pending, as soon as there is something; empty at the end, or when it is interrupted."""
        while not (self._closed or self._interrupted or (self._pending and self._may_go())):
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
            self._wake = None
        now = self._pace.note()
        self._waits_to_begin = self._has_turn = False
        if self._open:
            self._taken_at = now
        events = [event.message() if isinstance(event, MergedDelta) else event for event in self._pending]
        self._pending.clear()
        self._open.clear()
        self._pending_tokens, self._interrupted, self._is_urgent = 0, False, False
        if not events and self._error is not None:
            raise self._error
        return events

    def _may_go(self) -> bool:
        """Whether what is pending is to be sent now. Its beginning may have to wait, and deltas, while they are few."""
        if self._has_turn or self._is_urgent:
            return True
        if self._pace.is_due(self._taken_at) and (self._open or not self._pace.interval):
            return True
        if 2 * self._pending_tokens > self._max_pending_tokens:
            return True
        self._wait_for_a_turn()
        return False

    def _wait_for_a_turn(self) -> None:
        if not self._open and not self._waits_to_begin:
            self._waits_to_begin = True
            self._pace.next_beginnings(self._begin_alone)
        elif self._open and not self._waits:
            self._waits = True
            self._pace.next_round(self._go)

    def _begin_alone(self) -> None:
        if self._waits_to_begin:  # else its first delta has come meanwhile
            self._has_turn = True
            self._notify()

    def _go(self) -> None:
        self._waits, self._has_turn = False, True
        self._notify()

    def _overflow(self) -> None:
        # What it has not read will never be complete, so it is dropped here and now.
        self._pending.clear()
        self._open.clear()
        self.close(SlowConsumer(f"more than {self._max_pending_tokens} tokens wait to be read"))

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
