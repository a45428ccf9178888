"""One of several models that are asked: a request of its own, run by the pipeline, and what it has said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from weir.inference.v1.ensemble_pb2 import EnsembleMember, MemberRole
from weir.inference.v1.output_pb2 import FinishReason, Usage
from weir.inference.v1.stream_pb2 import Delta, OutputFinished, Receipt
from weir_chassis.errors import WeirError
from weir_chassis.status import to_failure
from weir_router.delivery import Event
from weir_router.pipeline import Run
from weir_router.request import ClientRequest


@dataclass(slots=True)
class Member:
    """`request` is asked once, by `answer`. What it has said counts when that has returned."""

    request: ClientRequest
    role: MemberRole.ValueType = MemberRole.MEMBER_ROLE_CANDIDATE
    text: str = ""
    finish_reason: FinishReason.ValueType = FinishReason.FINISH_REASON_UNSPECIFIED
    logprobs: list[float] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    receipt: Receipt = field(default_factory=Receipt)
    failure: WeirError | None = None
    # It has answered or failed.
    done: bool = False
    abstained: bool = False
    chosen: bool = False

    async def answer(self, run: Run, left_seconds: float | None) -> None:
        """A failure is its answer, too."""
        try:
            await run(self.request, self._note, left_seconds)
        except WeirError as error:
            self.failure = error
        self.done = True

    @property
    def answered(self) -> bool:
        return self.done and self.failure is None

    @property
    def mean_logprob(self) -> float | None:
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else None

    def message(self) -> EnsembleMember:
        return EnsembleMember(
            role=self.role,
            model=self.request.model,
            text=self.text,
            finish_reason=self.finish_reason,
            mean_logprob=self.mean_logprob,
            usage=self.usage,
            receipt=self.receipt,
            failure=None if self.failure is None else to_failure(self.failure),
            abstained=self.abstained,
            chosen=self.chosen,
        )

    async def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.text += event.text
            self.logprobs += [entry.logprob for entry in event.logprobs]
        elif isinstance(event, OutputFinished):
            self.finish_reason = event.finish_reason
        elif isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, Receipt):
            self.receipt = event
