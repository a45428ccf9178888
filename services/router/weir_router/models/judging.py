"""What has come of the requests of aliases is counted, and canaries are told by it what becomes of them."""

from __future__ import annotations

from weir_chassis.clock import Clock
from weir_chassis.telemetry import get_logger
from weir_router.journey import Journey
from weir_router.models.aliases import TargetView
from weir_router.models.metrics import ModelMetrics
from weir_router.models.outcome import outcome_of
from weir_router.routing import Routing


class Judging:
    def __init__(self, routing: Routing, clock: Clock, metrics: ModelMetrics):
        self._routing, self._clock, self._metrics = routing, clock, metrics

    def ended(self, journey: Journey, error: BaseException | None) -> None:
        """One request, once. `error`: what its client was told, if anything."""
        if journey.target is None or not journey.target.alias:
            return
        now = self._clock.monotonic()
        first = journey.progress.first_delta_at
        outcome = outcome_of(
            error,
            accepted=journey.progress.accepted_at is not None,
            ttft_seconds=None if first is None else first - journey.started_at,
            waited=now - journey.started_at,
            left_seconds=journey.left_seconds(),
        )
        self._metrics.ended(journey.target, outcome)
        canary = self._routing.aliases.note(journey.target, outcome, now)
        if canary is not None:
            self._tell(canary)

    def _tell(self, canary: TargetView) -> None:
        self._metrics.decided(canary)
        assert canary.stage is not None
        get_logger().warning(
            f"canary_{canary.stage.value}",
            alias=canary.target.alias,
            arm=canary.name,
            weight_now=canary.weight_now,
            reason=canary.reason,
        )
