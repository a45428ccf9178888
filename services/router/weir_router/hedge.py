"""A second executor beside the first, for a request of which the first says nothing: not yet, or not any more.

    first executor ────┐
                       ├── whoever speaks first ──► the attempt         the other is withdrawn at once
    second executor ───┘

Both are given the same request, with the same seed and the tokens that are drawn, so who wins decides when the answer
comes and not what it is. A first executor that stalls is left its place in the race: it may come round, and nobody else
may be there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished, RequestEnd, Submit
from weir.inference.v1.output_pb2 import RowLogprobs
from weir_chassis.errors import WeirError
from weir_router.streams.executor_stream import ExecutorStream, TokenLane

if TYPE_CHECKING:
    from weir_router.attempt import Attempt
    from weir_router.legs import Leg


class Cause(Enum):
    """Why a second executor is wanted."""

    # The first has had as long as the client or the model's configuration gives it.
    SLOW = "SLOW"
    # The first says nothing at all, to nobody.
    STALLED = "STALLED"


class Second:
    """An `ExecutorSink` on `stream`, the second executor's. `on_taken` is called when it has won."""

    def __init__(self, attempt: Attempt, stream: ExecutorStream, leg: Leg, on_taken: Callable[[], None]) -> None:
        self.leg = leg
        self._attempt, self._stream, self._on_taken = attempt, stream, on_taken
        self._is_taken = False

    def submit(self, submit: Submit) -> None:
        """Unless the race was over before it began: hashing a long prompt takes a moment."""
        if self._attempt.workers.second is not self:
            return
        self.leg.prompt_tokens = len(submit.token_ids) + sum(len(each.token_ids) for each in submit.resumed_outputs)
        try:
            self._stream.submit(submit, self)
        except WeirError:
            self._attempt.drop_second("failed")
            return
        for output_index in self._attempt.outputs.over():
            self._stream.abort_output(submit.handle, output_index)

    def take(self) -> None:
        """It is the attempt's executor from now on."""
        if not self._is_taken:
            self._is_taken = True
            self._attempt.take_second()
            self._on_taken()

    @property
    def lane(self) -> TokenLane:
        return self._attempt.lane

    def on_accepted(self) -> None:
        self.leg.note_prefilled()
        self._attempt.tell_accepted()

    def on_tokens(self, output_index: int, token_ids: Sequence[int]) -> None:
        self.take()
        self._attempt.on_tokens(output_index, token_ids)

    def on_logprobs(self, output_index: int, row: RowLogprobs) -> None:
        self._attempt.on_logprobs(output_index, row)

    def on_finished(self, row: ExecutorOutputFinished) -> None:
        self.take()
        self._attempt.on_finished(row)

    def on_ended(self, end: RequestEnd) -> None:
        self.take()
        self._attempt.on_ended(end)

    def on_failed(self, error: WeirError) -> None:
        if self._is_taken:
            self._attempt.on_failed(error)
        else:
            self._attempt.drop_second("failed")

    def on_stalled(self) -> None:
        """There is no third: what stalls twice ends with its executors, or with its deadline."""
