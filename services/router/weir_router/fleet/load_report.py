"""What an executor says of its load, and which of two such reports is the newer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from weir.executor.v1.executor_pb2 import GetLoadResponse
from weir_chassis.durations import seconds_of
from weir_router.fleet.views import Load


@dataclass(frozen=True, slots=True)
class LoadReport:
    """`made_at`: monotonic seconds when it was asked for, so that its age is never told too small."""

    response: GetLoadResponse
    made_at: float

    def follows(self, known: LoadReport | None) -> bool:
        """Whether it tells more than the known one: of another incarnation, or of no earlier step of the same one.

        One that was overtaken on its way tells of a load that has been, and is of no use.
        """
        if known is None or known.response.epoch != self.response.epoch:
            return True
        return self.response.step >= known.response.step and self.made_at >= known.made_at

    def has_progressed(self, known: LoadReport | None) -> bool:
        """Whether the engine has made a step since the known one."""
        now = (self.response.epoch, self.response.step)
        return known is None or now != (known.response.epoch, known.response.step)

    def load(self, now: float) -> Load:
        said = self.response
        return Load(
            epoch=said.epoch,
            sequence=said.step,
            age_seconds=max(0.0, now - self.made_at),
            waiting_requests=said.waiting_requests,
            running_sequences=said.running_sequences,
            free_blocks=said.free_blocks,
            total_blocks=said.total_blocks,
            tokens_per_second=said.tokens_per_second,
            step_seconds=seconds_of(said.last_step),
            outstanding_prefill_tokens=said.outstanding_prefill_tokens,
            prefill_token_seconds=said.prefill_token_seconds if said.HasField("prefill_token_seconds") else None,
        )
