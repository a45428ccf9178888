"""One request on its two workers: a handle on an executor's stream and on a postprocess stream, and what comes of it.

    executor ── tokens ──────────────► postprocess ── deltas ──► outbox ──► client
       │ ◄── abort ── a stop string ◄──────┘
       └─ finished ─► finish ─────────────► finished ──────────────►

Either worker may be another one later: which they are, and were, is in `workers`; what was drawn, and what of it the
client has, is in the journal.

All methods named `on_…` are called by the two streams, between awaits: they note, pass on and wake, and never wait.
What they cannot do themselves, because a worker must be chosen for it, is left as a setback or as a handover, and the
outbox is interrupted for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished, Handoff, RequestEnd, Submit
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.output_pb2 import FinishReason, RowLogprobs
from weir.inference.v1.stream_pb2 import Accepted, Continued, Delta, Receipt
from weir.postprocess.v1.postprocess_pb2 import Open, PostprocessOutputFinished
from weir_chassis.clock import Clock
from weir_chassis.errors import Internal, Overloaded, WeirError
from weir_router.delivery import Outbox
from weir_router.fleet.outstanding import Reservation
from weir_router.fleet.views import Price
from weir_router.hedge import Cause, Second
from weir_router.held_workers import HeldWorkers
from weir_router.journal import Journal
from weir_router.keeping import Begun
from weir_router.legs import Lane, Leg, Progress, Setback, WholeCall
from weir_router.metrics import RouterMetrics
from weir_router.outputs import Outputs, finished_of


class Attempt:
    """`accepted` is sent when the first executor accepts."""

    def __init__(
        self,
        *,
        handle: int,
        n: int,
        journal: Journal,
        outbox: Outbox,
        accepted: Accepted,
        progress: Progress,
        clock: Clock,
        metrics: RouterMetrics,
        on_slow: Callable[[WeirError], None],
    ):
        """`on_slow` is called when the client has read too slowly and nothing more is sent."""
        self.handle, self.journal, self.outbox, self.accepted = handle, journal, outbox, accepted
        self.progress = progress
        self._clock, self._metrics, self._on_slow = clock, metrics, on_slow
        self.workers = HeldWorkers(handle, metrics)
        self.outputs = Outputs(n)
        # What is to be done about it, by whoever may choose workers.
        self.executor_setback: Setback | None = None
        self.lane_setback: Setback | None = None
        self.handed_over = False
        # Where the prompt's blocks wait for the next executor; None: nowhere.
        self.handoff: Handoff | None = None
        self._is_to_hand_over = False
        # While the executor that has it has not spoken: why a second one is wanted.
        self.second_wanted: Cause | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Set by the executor's last word, and when there will be none.
        self.ended = asyncio.Event()

    @property
    def lane(self) -> Lane:
        """Where its tokens go. One that is lost takes them and forgets them."""
        lane = self.workers.lane
        assert lane is not None, "it has no postprocess replica yet"
        return lane

    @property
    def interrupted(self) -> bool:
        """It needs another worker."""
        return self.lane_setback is not None or self.needs_executor or self.second_wanted is not None

    @property
    def needs_executor(self) -> bool:
        """Some output is not over, and nobody draws it."""
        return bool(self.outputs.drawing) and (self.executor_setback is not None or self.handed_over)

    @property
    def needs_postprocessor(self) -> bool:
        """Whoever is to draw tokens now needs somebody who makes text of them."""
        return self.workers.lane is None or self.progress.delegated

    def take_up(self, begun: Begun) -> None:
        """What another router has done of it: its client has all of these tokens, or can be given them without it."""
        for output_index, token_ids in begun.token_ids.items():
            self.journal.draw(output_index, token_ids)
            if self.journal.complete:
                self.journal.deliver(output_index, len(token_ids))
            self.progress.delivered_tokens += len(token_ids)
        self.outputs.end(begun.finished)
        if not self.outputs.unfinished:
            self.ended.set()
            self.outbox.close()

    # Its workers.

    def postprocess(self, lane: Lane, opening: Open) -> None:
        """Its text is made here from now on: from where the client has it on, and for what it has not."""
        assert opening.handle == self.handle, opening
        self._change_lane(lane)
        opening.resumed_outputs.extend(self.journal.opened())
        try:
            lane.open(opening, self)
        except WeirError as error:
            self.on_text_failed(error)
            return
        lane.replay(self.journal.undelivered(self.handle))
        for row in self.journal.finishes.values():
            self._finish_text(row)
        for output_index in self.outputs.told():
            if output_index not in self.journal.finishes:  # which the new replica cannot know
                cancelled = FinishReason.FINISH_REASON_CANCELLED
                lane.finish(self.handle, output_index, cancelled, ends_with_stop_token=False)

    def _change_lane(self, lane: Lane) -> None:
        self.workers.change_lane(lane)
        self.lane_setback = None

    def enter(self, leg: Leg) -> None:
        """It is counted at this executor from now on, and no more at the one before."""
        self.drop_second("over")
        self.workers.enter(leg, handed_over=self.handed_over)
        self.executor_setback, self.handed_over = None, False
        self.progress.legs.append(leg)
        self.progress.delegated, self.progress.version, self.progress.told = False, None, None

    def delegate(self, call: WholeCall, reservation: Reservation, price: Price | None) -> None:
        """All of it is this call's from now on: it has the client's own request, and gives back text."""
        self._change_lane(call)
        self.enter(Leg(call, reservation, price))
        self.progress.delegated = True
        self.submit(Submit(handle=self.handle))

    def submit(self, submit: Submit) -> None:
        """The outputs that are not over go on at the executor that it has entered."""
        assert submit.handle == self.handle, submit
        leg, self._is_to_hand_over = self.workers.leg, submit.hand_off
        assert leg is not None, "it has no executor yet"
        leg.prompt_tokens = len(submit.token_ids) + sum(len(each.token_ids) for each in submit.resumed_outputs)
        self.progress.executors += (self.workers.executor.address,)
        try:
            leg.executor.submit(submit, self)
        except WeirError as error:
            self.on_failed(error)
            return
        for output_index in self.outputs.over():
            leg.executor.abort_output(self.handle, output_index)

    def tell_continued(self, continued: Continued) -> None:
        if not self.outbox.closed:
            self.outbox.add(continued)

    def stop(self) -> None:
        """Withdraws whatever still lives anywhere. Nothing is called afterwards."""
        self.drop_second("over")
        if self._timer is not None:
            self._timer.cancel()
        self.workers.release()
        self.outbox.close()

    # A second executor, while the first is silent.

    def hedge_after(self, seconds: float) -> None:
        """A second one is wanted when the first has not spoken within so long."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._want_second, Cause.SLOW)

    def hedge(self, second: Second) -> None:
        """It is there, and takes part in the race."""
        assert self.workers.second is None, "there is a second one"
        self.workers.second, self.progress.hedged = second, True

    def take_second(self) -> None:
        """It has spoken first, or is the only one left: the request is on it as if it had always been."""
        self.enter(self.workers.take_second())
        self._is_to_hand_over = False
        self.progress.executors += (self.workers.executor.address,)

    def drop_second(self, outcome: str) -> None:
        """It is not needed, or has failed."""
        self.second_wanted = None
        self.workers.drop_second(outcome)

    def _want_second(self, cause: Cause) -> None:
        leg = self.workers.leg
        is_silent = leg is not None and not leg.has_spoken and not self.progress.delegated
        is_open = bool(self.outputs.drawing) and not self.interrupted and not self.outbox.closed
        if is_silent and is_open and self.workers.second is None:
            self.second_wanted = cause
            self.outbox.interrupt()

    def _speak(self) -> Leg:
        """The executor that has it says something of the answer."""
        leg = self.workers.leg
        assert leg is not None, "an answer comes from an executor"
        if not leg.has_spoken:
            leg.has_spoken = True
            self.drop_second("lost")
        return leg

    # The executor's side.

    def on_accepted(self) -> None:
        if self.workers.leg is not None:
            self.workers.leg.note_prefilled()
        self.tell_accepted()

    def on_stalled(self) -> None:
        if self.workers.leg is not None and self.workers.second is None:
            self.workers.leg.has_spoken = False  # whoever draws the next token goes on
        self._want_second(Cause.STALLED)

    def tell_accepted(self) -> None:
        if self.progress.accepted_at is not None or self.outbox.closed:
            return
        self.progress.accepted_at = self._clock.monotonic()
        self.outbox.begin(self.accepted)

    def on_tokens(self, output_index: int, token_ids: Sequence[int]) -> None:
        leg = self._speak()
        leg.reservation.spend(len(token_ids))
        if output_index in self.outputs.drawing:
            leg.drawn_tokens += len(token_ids)
            self.journal.draw(output_index, token_ids)

    def on_logprobs(self, output_index: int, row: RowLogprobs) -> None:
        if output_index in self.outputs.drawing:
            self.journal.draw_logprobs(output_index, row)

    def on_finished(self, row: ExecutorOutputFinished) -> None:
        self._speak()
        if row.output_index not in self.outputs.drawing:
            return  # a stop string ended it, or the executor before, and this one confirms
        self.outputs.drawing.discard(row.output_index)
        if not self.outputs.drawing:
            self.progress.drawn_at = self._clock.monotonic()
        self.journal.finish(row)
        self._finish_text(row)

    def on_ended(self, end: RequestEnd) -> None:
        leg = self._speak()
        if self.outputs.drawing and self._is_to_hand_over:
            self._hand_over(end)
            return
        self.progress.end = end
        if self.progress.delegated:
            self.progress.delivered_tokens = end.usage.completion_tokens
        if self.outputs.drawing:
            self.on_failed(Internal(f"executor {leg.executor.address} ended a request with unfinished outputs"))
            return
        leg.reservation.release()
        self.ended.set()

    def on_failed(self, error: WeirError) -> None:
        if not self.outputs.drawing:  # all its tokens are here, and only its last word is lost
            self.ended.set()
        elif self.workers.second is not None:
            self.workers.second.take()
        elif not self.outbox.closed:
            self.executor_setback = Setback(self.workers.executor.address, error)
            if isinstance(error, Overloaded):
                self.workers.note_full()
            self.outbox.interrupt()

    def _hand_over(self, end: RequestEnd) -> None:
        """The prompt is computed, and the first tokens are drawn: another executor goes on."""
        self.progress.first_end = end
        if end.handoff.num_blocks:
            self.handoff = end.handoff
            # The executor does not know by which address it is reached.
            self.handoff.address = self.handoff.address or self.workers.executor.address
        self.handed_over = True
        self.outbox.interrupt()

    def _finish_text(self, row: ExecutorOutputFinished) -> None:
        stopped = row.finish_reason == FinishReason.FINISH_REASON_STOP and not row.guide_complete
        self.lane.finish(self.handle, row.output_index, row.finish_reason, ends_with_stop_token=stopped)

    # The side of whoever takes all of it.

    def on_version(self, version: ModelVersion) -> None:
        """What it is whose answer this will be."""
        self.progress.version = version
        self.accepted.model_version.CopyFrom(version)

    def on_text(self, delta: Delta, now: float) -> None:
        """Nobody can go on after tokens that nobody has told."""
        self.journal.draw_untold()
        self.on_delta(delta, now)

    def on_receipt(self, receipt: Receipt) -> None:
        self.progress.told = receipt

    # The postprocess service's side.

    def on_delta(self, delta: Delta, now: float) -> None:
        if self.outbox.closed:
            return
        count, progress = len(delta.token_ids), self.progress
        if progress.first_delta_at is None:
            self.on_accepted()
            progress.first_delta_at = now
        elif count:
            self._metrics.itl_seconds.observe((now - progress.last_delta_at) / count)
        progress.last_delta_at = now
        progress.delivered_tokens += count
        self.journal.deliver(delta.output_index, count)
        self.outbox.add_delta(delta, max(1, count))
        if self.outbox.closed:
            self.stop()
            assert self.outbox.error is not None
            self._on_slow(self.outbox.error)

    def on_text_finished(self, row: PostprocessOutputFinished) -> None:
        if self.outbox.closed or row.output_index not in self.outputs.unfinished:
            return
        self.on_accepted()  # an output may end without a single delta
        self.outputs.unfinished.discard(row.output_index)
        self.outbox.add(finished_of(row, self.journal.finishes.get(row.output_index)))
        if row.output_index in self.outputs.drawing:
            self._over_by_text(row.output_index)
        if not self.outputs.unfinished:
            self.progress.written_at = self._clock.monotonic()
            self.lane.done(self.handle)
            self.outbox.close()

    def _over_by_text(self, output_index: int) -> None:
        self.outputs.drawing.discard(output_index)
        if self.executor_setback is None and not self.handed_over:
            self.workers.executor.abort_output(self.handle, output_index)
        elif not self.outputs.drawing:  # nobody has it, and nobody needs to
            self.ended.set()

    def on_text_failed(self, error: WeirError) -> None:
        if not self.outbox.closed:
            self.lane_setback = Setback(self.lane.address, error)
            self.outbox.interrupt()
