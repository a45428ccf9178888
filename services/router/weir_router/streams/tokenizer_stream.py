"""All of this router's asks of one tokenizer, on one stream.

    ask ──► those that are there together are one message ──► tokenizer
    its task ◄── the answer, given to it where it is read

While the event loop has time to spare an ask leaves at once. The busier it is, the longer others are waited for: what
is asked as one message is mostly answered as one, and goes on as one from there.

What waits for an answer is bounded by how many requests this router has taken in, and so is what the tokenizer has not
read yet. Handles are never used twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Final, Literal, NamedTuple

import grpc

from weir.tokenizer.v1.tokenizer_pb2 import Answer, Ask, EncodeRequest, EncodeResponse
from weir_chassis.clock import Clock
from weir_chassis.deadline import hop_timeout
from weir_chassis.durations import duration
from weir_chassis.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, WeirError, WorkerLost
from weir_chassis.limits import MAX_JOINED, MAX_MESSAGE_BYTES
from weir_chassis.status import from_failure
from weir_router.faults.uses import Uses
from weir_router.streams.worker_stream import WorkerStream

# A larger message would make short prompts wait for long ones on their way, and saves nothing any more. One ask may be
# larger, and goes alone.
_MAX_JOINED_BYTES: Final = 1 << 20
# With room for what it is wrapped in: one that does not fit a message would end the stream of all.
_MAX_ASK_BYTES: Final = MAX_MESSAGE_BYTES - 64 * 1024
_Kind = Literal["tokenized", "applied"]
_ANSWERS: Final[Mapping[str, _Kind]] = {"tokenize": "tokenized", "apply_chat_template": "applied"}

Call = grpc.aio.StreamStreamCall[EncodeRequest, EncodeResponse]


class _Waiting(NamedTuple):
    # Not set to an exception, which would complain when its task has gone meanwhile.
    outcome: asyncio.Future[Answer | WeirError]
    kind: _Kind
    since: float
    # The client gives up before the router would.
    clients_clock: bool


class TokenizerStream(WorkerStream[EncodeRequest, EncodeResponse]):
    kind = "tokenizer"

    def __init__(
        self,
        address: str,
        clock: Clock,
        timeout_seconds: float,
        uses: Uses | None = None,
        pause_seconds: Callable[[], float] = lambda: 0.0,
    ):
        """`timeout_seconds`: a tokenizer that takes longer for an ask has lost it. `uses`: who is told what becomes of
        asks. `pause_seconds`: for how long others are waited for."""
        super().__init__(address, self._pause)
        self._clock, self._timeout_seconds, self._uses = clock, timeout_seconds, uses or Uses()
        self._pause_seconds, self._handles = pause_seconds, count(1)
        # In the order in which they were asked.
        self._waiting: dict[int, _Waiting] = {}
        # Those of them that are not sent yet, with their sizes in bytes.
        self._unsent: dict[int, tuple[Ask, int]] = {}
        self._withdrawn: list[int] = []
        # Since when the tokenizer has owed an answer without giving any; None: it owes none.
        self._owing_since: float | None = None

    @property
    def num_live(self) -> int:
        return len(self._waiting)

    def silent_seconds(self, now: float) -> float:
        """How long the tokenizer has owed an answer without giving any."""
        return 0.0 if self._owing_since is None else now - self._owing_since

    async def run(self, call: Call) -> None:
        timer = asyncio.create_task(self._watch_clock(), name="tokenizer-clock")
        try:
            await super().run(call)
        finally:
            timer.cancel()

    async def ask(self, ask: Ask, left_seconds: float | None) -> Answer:
        """Gives it a handle and a time, and waits. `left_seconds`: of the client's deadline; None when it has none.

        Raises what the tokenizer refuses with, InvalidArgument for what no message can hold, DeadlineExceeded, and
        WorkerLost or Draining when the stream ends before it is answered.
        """
        if not self._open:
            raise self._lost("its stream has ended")
        ask.handle = next(self._handles)
        _limit(ask, hop_timeout(left_seconds, limit=self._timeout_seconds))
        try:
            answer = await self._send(ask, left_seconds)
        except asyncio.CancelledError:
            self._withdraw(ask.handle)
            raise
        if isinstance(answer, WeirError):
            raise answer
        return answer

    def give_up(self, seconds: float) -> None:
        """The tokenizer has answered nothing at all for so long: its asks need not wait for it."""
        self._fail(list(self._waiting), self._lost(f"it has answered nothing for {seconds:.0f} s"))

    # ── what is sent ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, ask: Ask, left_seconds: float | None) -> asyncio.Future[Answer | WeirError]:
        size, kind = ask.ByteSize(), ask.WhichOneof("request")
        if size > _MAX_ASK_BYTES:
            raise InvalidArgument("prompt", f"{size} bytes, the limit is {_MAX_ASK_BYTES}")
        assert kind is not None, "it asks something"
        now, clients_clock = self._clock.monotonic(), _is_clients(left_seconds, self._timeout_seconds)
        outcome: asyncio.Future[Answer | WeirError] = asyncio.get_running_loop().create_future()
        self._waiting[ask.handle] = _Waiting(outcome, _ANSWERS[kind], now, clients_clock)
        if self._owing_since is None:
            self._owing_since = now
        self._uses.begin(ask.handle)
        self._unsent[ask.handle] = ask, size
        self._duplex.wake()
        return outcome

    def _withdraw(self, handle: int) -> None:
        """Nobody waits for it any more, if it lives."""
        if self._forget(handle) is None:
            return
        self._uses.ended(handle)
        if self._unsent.pop(handle, None) is None and self._open:
            self._withdrawn.append(handle)
            self._duplex.wake()

    def _pause(self) -> Awaitable[None] | None:
        seconds = self._pause_seconds()
        return self._clock.sleep(seconds) if seconds > 0.0 else None

    def _next_message(self) -> EncodeRequest | None:
        if not self._unsent and not self._withdrawn:
            return None
        message, joined = EncodeRequest(withdrawn_handles=self._withdrawn[:MAX_JOINED]), 0
        del self._withdrawn[:MAX_JOINED]
        while self._unsent and len(message.asks) < MAX_JOINED:
            handle, (ask, size) = next(iter(self._unsent.items()))
            if joined and joined + size > _MAX_JOINED_BYTES:
                break
            del self._unsent[handle]
            message.asks.append(ask)
            joined += size
        return message

    # ── what comes back ───────────────────────────────────────────────────────────────────────────────────────────────

    def _on_message(self, message: EncodeResponse) -> None:
        for answer in message.answers:
            if (waiting := self._forget(answer.handle)) is not None:
                self._tell(answer, waiting)
        self._owing_since = self._clock.monotonic() if self._waiting else None

    def _tell(self, answer: Answer, waiting: _Waiting) -> None:
        if answer.HasField(waiting.kind):
            self._uses.succeeded(answer.handle)
            _set(waiting, answer)
            return
        error = self._explain(answer, waiting)
        self._uses.failed(answer.handle, error)
        _set(waiting, error)

    def _explain(self, answer: Answer, waiting: _Waiting) -> WeirError:
        """Slower than we allow it, it has lost the ask; cut short by the client's deadline, it has not."""
        if not answer.HasField("failure"):
            return Internal(f"tokenizer {self.address} answered something else than it was asked")
        error = from_failure(answer.failure)
        if isinstance(error, DeadlineExceeded) and not waiting.clients_clock:
            return self._lost("it did not answer in time")
        # A client's own cancellation ends our task and is never seen as an answer.
        if isinstance(error, (WorkerLost, Cancelled)):
            return self._lost(error.message)
        return error

    def _forget(self, handle: int) -> _Waiting | None:
        waiting = self._waiting.pop(handle, None)
        if not self._waiting:
            self._owing_since = None
        return waiting

    # ── what does not come back ───────────────────────────────────────────────────────────────────────────────────────

    async def _watch_clock(self) -> None:
        """One timer for all: each may wait equally long, so the oldest is due first."""
        while True:
            await self._clock.sleep(self._fail_overdue())

    def _fail_overdue(self) -> float:
        """Returns the seconds in which no other one can become overdue."""
        now = self._clock.monotonic()
        since = now - self._timeout_seconds
        overdue = []
        for handle, waiting in self._waiting.items():
            if waiting.since > since:
                break
            overdue.append(handle)
        self._fail(overdue, self._lost("it did not answer in time"))
        oldest = next(iter(self._waiting.values()), None)
        return self._timeout_seconds if oldest is None else oldest.since + self._timeout_seconds - now

    def _fail(self, handles: list[int], error: WeirError) -> None:
        """The stream lives on."""
        for handle in handles:
            waiting = self._waiting[handle]
            self._uses.failed(handle, error)
            self._withdraw(handle)
            _set(waiting, error)

    def _fail_all(self) -> None:
        """The stream does not."""
        waiting, self._waiting = self._waiting, {}
        self._unsent.clear()
        self._withdrawn.clear()
        error = self._uses.lost(self._lost(self.cause))
        for one in waiting.values():
            _set(one, error)


def _limit(ask: Ask, seconds: float | None) -> None:
    """States for how long it is waited for."""
    assert seconds is not None, "no ask is waited for without end"
    ask.time_left.CopyFrom(duration(seconds))


def _is_clients(left_seconds: float | None, timeout_seconds: float) -> bool:
    """Whether the client's deadline comes before the router's own."""
    return left_seconds is not None and left_seconds <= timeout_seconds


def _set(waiting: _Waiting, outcome: Answer | WeirError) -> None:
    """Whoever waits may have been cancelled in this turn, and not have said so yet."""
    if not waiting.outcome.done():
        waiting.outcome.set_result(outcome)
