"""One try of one request: a handle on an executor's stream and on a postprocess stream, and what has come of it.

    executor ── tokens ──────────────► postprocess ── deltas ──► outbox ──► client
       │ ◄── abort ── a stop string ◄──────┘
       └─ finished ─► finish ─────────────► finished ──────────────►

All methods named `on_…` are called by the two streams, between awaits: they note, pass on and wake, and never wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished, RequestEnd, Submit
from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished
from weir.postprocess.v1.postprocess_pb2 import Open, PostprocessOutputFinished
from weir_chassis.clock import Clock
from weir_chassis.errors import Internal, WeirError
from weir_router.delivery import Outbox
from weir_router.fleet.outstanding import Reservation
from weir_router.metrics import RouterMetrics
from weir_router.streams.executor_stream import ExecutorSink, ExecutorStream
from weir_router.streams.postprocess_stream import PostprocessStream


@dataclass(slots=True)
class Progress:
    """What an attempt has come to. Times are monotonic seconds."""

    accepted_at: float | None = None
    first_delta_at: float | None = None
    last_delta_at: float = 0.0
    delivered_tokens: int = 0
    # The client is being sent what another attempt could only repeat: a delta, or the end of an output.
    answering: bool = False
    # Of the executor that had it last, and of the one before it, which computed its prompt, if there were two.
    end: RequestEnd | None = None
    first_end: RequestEnd | None = None
    # Addresses of the executors that have had it, in order.
    executors: tuple[str, ...] = ()
    # The worker whose failure ended the attempt: one or none.
    failed_workers: frozenset[str] = frozenset()


@dataclass(slots=True)
class Leg:
    """One executor that an attempt is on, and what it may still cost there."""

    executor: ExecutorStream
    reservation: Reservation
    # Not yet known to be computed.
    prompt_tokens: int = 0

    def note_prefilled(self) -> None:
        self.reservation.spend(self.prompt_tokens)
        self.reservation.prefilled()
        self.prompt_tokens = 0


class Attempt:
    """`accepted` is sent when the executor accepts; None when an earlier attempt has sent it."""

    def __init__(
        self,
        *,
        handle: int,
        n: int,
        executor: ExecutorStream,
        lane: PostprocessStream,
        reservation: Reservation,
        outbox: Outbox,
        accepted: Accepted | None,
        clock: Clock,
        metrics: RouterMetrics,
        on_slow: Callable[[WeirError], None],
    ):
        self.handle, self.lane, self.outbox, self.progress = handle, lane, outbox, Progress()
        self._leg, self._accepted = Leg(executor, reservation), accepted
        self._left: list[ExecutorStream] = []  # that had it before, and may hold what it left
        self._clock, self._metrics, self._on_slow = clock, metrics, on_slow
        # Outputs that the executor still draws, and those whose text has not ended.
        self._drawing, self._unfinished = set(range(n)), set(range(n))
        self._stop_token_ids: dict[int, int] = {}
        # Set by the executor's last word, whatever it is.
        self.ended = asyncio.Event()

    @property
    def worker(self) -> str:
        """The address of the executor that has it now."""
        return self._leg.executor.address

    @property
    def drawing(self) -> bool:
        """Whether some output of it is not over."""
        return bool(self._drawing)

    def start(self, submit: Submit, opening: Open, sink: ExecutorSink | None = None) -> None:
        """Raises WorkerLost when one of the streams has ended since it was chosen. `sink`: in place of the attempt."""
        assert submit.handle == opening.handle == self.handle
        worker = self.lane.address
        try:
            self.lane.open(opening, self)
            worker = self.worker
            self._submit(submit, sink or self)
        except WeirError as error:
            self._fail(error, worker)
            raise

    def move(self, leg: Leg, submit: Submit, sink: ExecutorSink) -> None:
        """The outputs that are not over go on at another executor. Raises WorkerLost when its stream has ended."""
        self._left.append(self._leg.executor)
        self._leg.reservation.release()
        self._leg = leg
        self._submit(submit, sink)
        for output_index in sorted(set(range(submit.sampling.n or 1)) - self._drawing):
            leg.executor.abort_output(self.handle, output_index)

    def _submit(self, submit: Submit, sink: ExecutorSink) -> None:
        self._leg.prompt_tokens = len(submit.token_ids)
        self.progress.executors += (self.worker,)
        self._leg.executor.submit(submit, sink)

    def stop(self) -> None:
        """Withdraws whatever still lives anywhere. Nothing is called afterwards."""
        for executor in (*self._left, self._leg.executor):
            executor.withdraw(self.handle)
        self.lane.close(self.handle)
        self._leg.reservation.release()
        self.outbox.close()

    # The executor's side.

    def on_accepted(self) -> None:
        self._leg.note_prefilled()
        if self.progress.accepted_at is not None or self.outbox.closed:
            return
        self.progress.accepted_at = self._clock.monotonic()
        if self._accepted is not None:
            self.outbox.add(self._accepted)

    def on_tokens(self, count: int) -> None:
        self._leg.reservation.spend(count)

    def on_finished(self, row: ExecutorOutputFinished) -> None:
        if row.output_index not in self._drawing:
            return  # a stop string ended it, or the executor before, and this one confirms
        self._drawing.discard(row.output_index)
        if row.HasField("stop_token_id"):
            self._stop_token_ids[row.output_index] = row.stop_token_id
        stopped = row.finish_reason == FinishReason.FINISH_REASON_STOP and not row.guide_complete
        self.lane.finish(self.handle, row.output_index, row.finish_reason, ends_with_stop_token=stopped)

    def on_ended(self, end: RequestEnd) -> None:
        self.progress.end = end
        self._leg.reservation.release()
        self.ended.set()
        if self._drawing:
            self._fail(Internal(f"executor {self.worker} ended a request with unfinished outputs"), self.worker)

    def on_failed(self, error: WeirError) -> None:
        self.ended.set()
        if self._drawing:  # else all its tokens are here, and only its last word is lost
            self._fail(error, self.worker)

    # The postprocess service's side.

    def on_delta(self, delta: Delta, now: float) -> None:
        if self.outbox.closed:
            return
        count, progress = len(delta.token_ids), self.progress
        progress.answering = True
        if progress.first_delta_at is None:
            self.on_accepted()
            progress.first_delta_at = now
        elif count:
            self._metrics.itl_seconds.observe((now - progress.last_delta_at) / count)
        progress.last_delta_at = now
        progress.delivered_tokens += count
        self.outbox.add_delta(delta, count)
        if self.outbox.closed:
            self.stop()
            assert self.outbox.error is not None
            self._on_slow(self.outbox.error)

    def on_text_finished(self, row: PostprocessOutputFinished) -> None:
        if self.outbox.closed or row.output_index not in self._unfinished:
            return
        self.on_accepted()  # an output may end without a single delta
        self.progress.answering = True
        self._unfinished.discard(row.output_index)
        self.outbox.add(self._finished(row))
        if row.output_index in self._drawing:
            self._drawing.discard(row.output_index)
            self._leg.executor.abort_output(self.handle, row.output_index)
        if not self._unfinished:
            self.lane.done(self.handle)
            self.outbox.close()

    def on_text_failed(self, error: WeirError) -> None:
        self._fail(error, self.lane.address)

    def _finished(self, row: PostprocessOutputFinished) -> OutputFinished:
        finished = OutputFinished(output_index=row.output_index, finish_reason=row.finish_reason)
        if row.HasField("stop"):
            finished.stop = row.stop
        elif row.finish_reason == FinishReason.FINISH_REASON_STOP and row.output_index in self._stop_token_ids:
            finished.stop_token_id = self._stop_token_ids[row.output_index]
        return finished

    def _fail(self, error: WeirError, worker: str) -> None:
        self.ended.set()
        if not self.outbox.closed:
            self.progress.failed_workers = frozenset({worker})
            self.outbox.close(error)
