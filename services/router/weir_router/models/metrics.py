"""What is counted of models. Aliases and arms are the operator's own, so there are few."""

from __future__ import annotations

from weir_chassis.metrics import Metrics
from weir_router.metrics import TTFT_SECONDS
from weir_router.models.aliases import TargetView
from weir_router.models.outcome import End, Outcome
from weir_router.models.target import Target

_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class ModelMetrics:
    def __init__(self, metrics: Metrics):
        self._requests = metrics.counter("alias_requests", "Requests of aliases, by end", ("alias", "arm", "end"))
        self._weight = metrics.gauge("canary_weight", "What a canary has of its alias' weights", ("alias", "arm"))
        self._decisions = metrics.counter("canary_decisions", "Steps of canaries", ("alias", "arm", "decision"))

        self._shadows = metrics.counter("shadow_requests", "Requests asked of shadows, by end", ("alias", "end"))
        self._shadow_ttft = metrics.histogram(
            "shadow_ttft_seconds", "From a shadow's start to its first delta", ("alias",), TTFT_SECONDS
        )
        self._agreement = metrics.histogram(
            "shadow_token_agreement", "Share of the tokens until the first that differs", ("alias",), _SHARES
        )

    def ended(self, target: Target, outcome: Outcome) -> None:
        self._requests.labels(target.alias, target.arm or str(target), outcome.end.value).inc()

    def shadow_dropped(self, alias: str) -> None:
        """Its budget had no room for it."""
        self._shadows.labels(alias, "dropped").inc()

    def shadow_ended(self, alias: str, end: End, ttft_seconds: float | None, agreement: float | None) -> None:
        self._shadows.labels(alias, end.value).inc()
        if ttft_seconds is not None:
            self._shadow_ttft.labels(alias).observe(ttft_seconds)
        if agreement is not None:
            self._agreement.labels(alias).observe(agreement)

    def decided(self, canary: TargetView) -> None:
        assert canary.stage is not None
        self._weight.labels(canary.target.alias, canary.name).set(canary.weight_now)
        self._decisions.labels(canary.target.alias, canary.name, canary.stage.value).inc()
