"""What is counted of models. Aliases and arms are the operator's own, so there are few."""

from __future__ import annotations

from weir_chassis.metrics import Metrics
from weir_router.models.aliases import TargetView
from weir_router.models.outcome import Outcome
from weir_router.models.target import Target


class ModelMetrics:
    def __init__(self, metrics: Metrics):
        self._requests = metrics.counter("alias_requests", "Requests of aliases, by end", ("alias", "arm", "end"))
        self._weight = metrics.gauge("canary_weight", "What a canary has of its alias' weights", ("alias", "arm"))
        self._decisions = metrics.counter("canary_decisions", "Steps of canaries", ("alias", "arm", "decision"))

    def ended(self, target: Target, outcome: Outcome) -> None:
        self._requests.labels(target.alias, target.arm or str(target), outcome.end.value).inc()

    def decided(self, canary: TargetView) -> None:
        assert canary.stage is not None
        self._weight.labels(canary.target.alias, canary.name).set(canary.weight_now)
        self._decisions.labels(canary.target.alias, canary.name, canary.stage.value).inc()
