"""One caller's stream: its asks by handle, and the answers that wait to be written.

    read ─▶ ask ─▶ a task each ─▶ Encoder ─▶ answer ─▶ next_message() ─▶ the wire
         └▶ withdraw: the task ends, the thread's work if it has not begun

While a message is being written, what is answered meanwhile comes together in the next one. A caller that does not read
is not read from either, once so much waits for it, and loses the stream when a write takes too long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import grpc

from weir.tokenizer.v1 import tokenizer_pb2 as pb
from weir_chassis.durations import seconds_of
from weir_chassis.errors import AlreadyExists, DeadlineExceeded, Draining, InvalidArgument, Overloaded
from weir_chassis.leases import Lease, LeaseLedger
from weir_chassis.limits import MAX_JOINED
from weir_chassis.observed import Observer, Outcome
from weir_chassis.status import to_failure
from weir_chassis.telemetry import Request, carried_request
from weir_tokenizer.encoder import Encoder

# A larger message would make small answers wait for large ones on their way, and saves nothing any more. One answer
# may be larger, and goes alone.
_MAX_JOINED_BYTES: Final = 1 << 20
# What waits to be written before no more is read: some of the largest messages, or many refusals.
_MAX_UNWRITTEN_BYTES: Final = 16 << 20
# What a refused ask counts at least, for its place in the queue.
_LEAST_BYTES: Final = 256

# An ask is counted, timed and logged as a call of its RPC.
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["TokenizerService"].full_name
_METHODS: Final[Mapping[str, str]] = {
    "tokenize": f"/{_SERVICE}/Tokenize",
    "apply_chat_template": f"/{_SERVICE}/ApplyChatTemplate",
}
_NO_METHOD: Final = f"/{_SERVICE}/Encode"


@dataclass(frozen=True, slots=True)
class AskDesk:
    """What all streams share. `max_open`: asks on one stream. `default_seconds`: for an ask that brings no time."""

    encoder: Encoder
    observer: Observer
    leases: LeaseLedger
    random: Random
    max_open: int
    default_seconds: float | None = None


@dataclass(slots=True, eq=False)
class _Open:
    """An ask, until its answer is taken to be written, or nobody waits for it."""

    lease: Lease
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Ready:
    answer: pb.Answer
    # None: it was refused, and never opened.
    of: _Open | None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = max(_LEAST_BYTES, self.answer.ByteSize())


class AskStream:
    """Used from one event loop; `next_message` by one task, and `read` by another."""

    def __init__(self, desk: AskDesk) -> None:
        self._desk = desk
        self._open: dict[int, _Open] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: deque[_Ready] = deque()
        self._ready_bytes = 0
        self._wake, self._has_room = asyncio.Event(), asyncio.Event()
        self._has_room.set()
        self._half_closed = self._draining = False
        self._error: Exception | None = None

    # ── what the caller says ──────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, context: Any) -> None:
        """Does what the caller asks until it has no more to ask. What is open then is answered."""
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                self.take(message)
                await self._has_room.wait()
        except Exception as error:
            self._error = error
        self._half_closed = True
        self._wake.set()

    def take(self, message: pb.EncodeRequest) -> None:
        """Raises InvalidArgument for one that no caller of good will sends: it would keep all others waiting."""
        _check_joined("asks", len(message.asks))
        _check_joined("withdrawn_handles", len(message.withdrawn_handles))
        for ask in message.asks:
            self._begin(ask)
        for handle in message.withdrawn_handles:
            self._withdraw(handle)

    def _begin(self, ask: pb.Ask) -> None:
        request = carried_request(ask.request_id, ask.traceparent, self._desk.random)
        if (refusal := self._refusal(ask)) is not None:
            self._refuse(ask, request, refusal)
            return
        opened = _Open(self._desk.leases.acquire("ask", request.request_id))
        opened.task = asyncio.create_task(self._work(ask, request, opened), name="ask")
        self._open[ask.handle] = opened
        self._tasks.add(opened.task)
        opened.task.add_done_callback(self._tasks.discard)

    def _refusal(self, ask: pb.Ask) -> Exception | None:
        if self._draining:
            return Draining("the tokenizer is shutting down")
        if ask.handle in self._open:
            return AlreadyExists(str(ask.handle), f"an ask with handle {ask.handle} is open on this stream")
        if ask.WhichOneof("request") is None:
            return InvalidArgument("request", "missing; tokenize or apply_chat_template")
        if len(self._open) >= self._desk.max_open:
            return Overloaded(f"{len(self._open)} asks are open on this stream, which is the limit")
        return None

    def _refuse(self, ask: pb.Ask, request: Request, error: Exception) -> None:
        with self._desk.observer.observing(_method(ask), request) as outcome:
            self._add(_failure(ask, outcome, error), None)

    def _withdraw(self, handle: int) -> None:
        if (opened := self._open.pop(handle, None)) is not None:
            opened.lease.release()
            assert opened.task is not None, "an ask is worked on from its beginning"
            opened.task.cancel()
            self._wake.set()  # it may have been the last one that the stream's end waits for

    # ── the work ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _work(self, ask: pb.Ask, request: Request, opened: _Open) -> None:
        with self._desk.observer.observing(_method(ask), request) as outcome:
            try:
                answer = await self._answer(ask)
            except asyncio.CancelledError:
                outcome.given_up()
                raise
            except Exception as error:
                answer = _failure(ask, outcome, error)
        self._add(answer, opened)

    async def _answer(self, ask: pb.Ask) -> pb.Answer:
        left = self._left_seconds(ask)
        try:
            async with asyncio.timeout(left) as limit:
                if ask.HasField("tokenize"):
                    return pb.Answer(handle=ask.handle, tokenized=await self._desk.encoder.tokenize(ask.tokenize, left))
                applied = await self._desk.encoder.apply_chat_template(ask.apply_chat_template, left)
                return pb.Answer(handle=ask.handle, applied=applied)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"the ask was not answered within its {left:g} s") from None

    def _left_seconds(self, ask: pb.Ask) -> float | None:
        if not ask.HasField("time_left"):
            return self._desk.default_seconds
        return max(0.0, seconds_of(ask.time_left))

    # ── what the caller reads ─────────────────────────────────────────────────────────────────────────────────────────

    async def next_message(self) -> pb.EncodeResponse | None:
        """Waits until there is something to say. None when all has been said and no more will be asked.

        Raises the error with which the stream ends; Draining when the tokenizer stops and no ask is open here.
        """
        while (message := self._take()) is None:
            if self._error is not None:
                raise self._error
            if not self._open and self._draining:
                raise Draining("the tokenizer is shutting down and no ask is open on this stream")
            if not self._open and self._half_closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        return message

    def _add(self, answer: pb.Answer, of: _Open | None) -> None:
        ready = _Ready(answer, of)
        self._ready.append(ready)
        self._note_room(ready.size)
        self._wake.set()

    def _take(self) -> pb.EncodeResponse | None:
        """What is there, up to the size of one message. Only now may the caller use their handles again."""
        message, size = pb.EncodeResponse(), 0
        while self._ready and (not size or size + self._ready[0].size <= _MAX_JOINED_BYTES):
            ready = self._ready.popleft()
            self._note_room(-ready.size)
            if ready.of is not None and self._open.get(ready.answer.handle) is not ready.of:
                continue  # it has been withdrawn
            message.answers.append(ready.answer)
            size += ready.size
            if ready.of is not None:
                self._open.pop(ready.answer.handle).lease.release()
        return message if size else None

    def _note_room(self, change: int) -> None:
        self._ready_bytes += change
        if self._ready_bytes > _MAX_UNWRITTEN_BYTES:
            self._has_room.clear()
        else:
            self._has_room.set()

    # ── its end ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self) -> None:
        """Takes nothing new, and ends the stream as soon as no ask is open on it."""
        self._draining = True
        self._wake.set()

    async def close(self) -> None:
        """The stream has ended, in whatever way: nobody waits for what is open on it."""
        for handle in list(self._open):
            self._withdraw(handle)
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _check_joined(field: str, count: int) -> None:
    if count > MAX_JOINED:
        raise InvalidArgument(field, f"{count} in one message, the limit is {MAX_JOINED}")


def _method(ask: pb.Ask) -> str:
    return _METHODS.get(ask.WhichOneof("request") or "", _NO_METHOD)


def _failure(ask: pb.Ask, outcome: Outcome, error: Exception) -> pb.Answer:
    return pb.Answer(handle=ask.handle, failure=to_failure(outcome.failed(error)))
