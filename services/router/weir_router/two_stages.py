"""A request that two executors share: one computes its prompt and first tokens, another goes on.

    prefill ── tokens ──▶ the attempt, and noted here: the second goes on after them
       └─ its end, with a handoff; or its loss, without ──▶ decode ── tokens ──▶ the attempt

Whatever becomes of the first, the second can do all that is left: it takes the prompt's blocks over where there are
any to take, and computes the prompt otherwise. One that is lost before it has said anything is replaced once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished, Handoff, RequestEnd, ResumedOutput, Submit
from weir.inference.v1.output_pb2 import TokenBatch
from weir_chassis.errors import WeirError
from weir_router.attempt import Attempt, Leg
from weir_router.faults.retries import Retries
from weir_router.faults.table import Where, verdict
from weir_router.journey import duration
from weir_router.streams.executor_stream import TokenLane

# Of executors for the second stage: a request that kills workers must not kill the fleet.
_MAX_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Seat:
    """A place on an executor for the second stage."""

    leg: Leg
    # Tokens.
    block_size: int
    # Of the client's deadline; None: it has none.
    left_seconds: float | None


class FirstTokens:
    """What the first stage has drawn, noted on its way to postprocess."""

    def __init__(self, lane: TokenLane) -> None:
        self._lane = lane
        self._token_ids: dict[int, list[int]] = defaultdict(list)

    def add_tokens(self, batch: TokenBatch) -> None:
        """A batch with no rows but this request's: the executor's stream gives every lane its own."""
        start = 0
        for output_index, count in zip(batch.output_indexes, batch.token_counts, strict=True):
            self._token_ids[output_index] += batch.token_ids[start : start + count]
            start += count
        self._lane.add_tokens(batch)

    def resumed(self) -> list[ResumedOutput]:
        return [ResumedOutput(output_index=index, token_ids=ids) for index, ids in sorted(self._token_ids.items())]


class TwoStages:
    """An `ExecutorSink` on both executors, one after the other."""

    def __init__(
        self,
        attempt: Attempt,
        submit: Submit,
        block_size: int,
        find_seat: Callable[[frozenset[str]], Seat],
        retries: Retries,
    ) -> None:
        """`submit` is that of the first, with hashes of blocks of this size.

        `find_seat` chooses for the second among all but these, or raises a WeirError.
        """
        self._attempt, self._submit, self._block_size = attempt, submit, block_size
        self._find_seat, self._retries = find_seat, retries
        self._first = FirstTokens(attempt.lane)
        self._handoff: Handoff | None = None
        self._seconds = 0
        self._has_spoken = False  # the second
        self._lost: frozenset[str] = frozenset()

    @property
    def lane(self) -> TokenLane:
        return self._attempt.lane if self._seconds else self._first

    def on_accepted(self) -> None:
        self._attempt.on_accepted()

    def on_tokens(self, count: int) -> None:
        self._has_spoken = self._seconds > 0
        self._attempt.on_tokens(count)

    def on_finished(self, row: ExecutorOutputFinished) -> None:
        self._attempt.on_finished(row)

    def on_ended(self, end: RequestEnd) -> None:
        if self._seconds or not self._attempt.drawing:
            self._attempt.on_ended(end)
            return
        self._attempt.progress.first_end = end
        if end.handoff.num_blocks:
            self._handoff = end.handoff
            # The executor does not know by which address it is reached.
            self._handoff.address = self._handoff.address or self._attempt.worker
        self._go_on()

    def on_failed(self, error: WeirError) -> None:
        if self._may_go_on(error):
            self._lost |= {self._attempt.worker}
            self._go_on()
        else:
            self._attempt.on_failed(error)

    def _may_go_on(self, error: WeirError) -> bool:
        if self._has_spoken or not self._attempt.drawing:
            return False
        if not self._seconds:  # the second stage was to come in any case
            return verdict(error, Where.BEFORE_FIRST_TOKEN).elsewhere
        return self._retries.may_retry(error, Where.BEFORE_FIRST_TOKEN, self._seconds, max_attempts=_MAX_SECONDS)

    def _go_on(self) -> None:
        self._seconds += 1
        try:
            seat = self._find_seat(self._lost)
            self._attempt.move(seat.leg, self._second_submit(seat), self)
        except WeirError as error:
            self._attempt.on_failed(error)

    def _second_submit(self, seat: Seat) -> Submit:
        submit = Submit()
        submit.CopyFrom(self._submit)
        submit.hand_off = False
        submit.resumed_outputs.extend(self._first.resumed())
        if seat.left_seconds is not None:
            submit.time_left.CopyFrom(duration(seat.left_seconds))
        if seat.block_size != self._block_size:
            submit.ClearField("block_hashes")  # nobody else's blocks are of use there
        elif self._handoff is not None:
            submit.take_over.CopyFrom(self._handoff)
        return submit
