"""The breakers of all workers, and who is left out for them. What is decided is in `breaker.py` and `ejection.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import TypeVar

from weir_chassis.clock import Clock
from weir_chassis.errors import WeirError
from weir_chassis.telemetry import get_logger
from weir_router.faults.breaker import BreakerLimits, State, Use, WorkerBreaker
from weir_router.faults.ejection import ejected
from weir_router.faults.table import Where
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorView, PostprocessorView, TokenizerView, WorkerState
from weir_router.metrics import RouterMetrics

V = TypeVar("V", ExecutorView, TokenizerView, PostprocessorView)
# A worker's address, and the model that it is used for: empty for those of whom one fault says all.
Key = tuple[str, str]


class Breakers:
    """`on_change` is told when somebody is to be left out from now on, or no longer."""

    def __init__(
        self,
        limits: BreakerLimits,
        max_ejected_share: float,
        *,
        clock: Clock,
        random: Random,
        metrics: RouterMetrics,
        on_change: Callable[[], None],
    ) -> None:
        self._limits, self._max_share = limits, max_ejected_share
        self._clock, self._random, self._metrics, self._on_change = clock, random, metrics, on_change
        # As many as there are workers, times the models of each: who has left the fleet is forgotten.
        self._breakers: dict[Key, WorkerBreaker] = {}
        # Of these, those that are not closed: mostly none.
        self._opened: dict[Key, WorkerBreaker] = {}

    def begin(self, worker: str, model: str = "") -> Use:
        """The worker is given a request. Whoever gives it tells how it ended."""
        key = (worker, model)
        if key not in self._breakers:
            on_move = partial(self._moved, key)
            self._breakers[key] = WorkerBreaker(self._limits, self._clock, self._random, on_move)
        return self._breakers[key].begin()

    def answered_probe(self, worker: str) -> None:
        """The worker is there, and says nothing against itself."""
        for (address, _), breaker in list(self._opened.items()):
            if address == worker:
                breaker.answered_probe()

    def stalled(self, worker: str) -> None:
        """The worker owes answers and is silent about everything."""
        for (address, _), breaker in list(self._breakers.items()):
            if address == worker:
                breaker.stalled()

    def forget(self, worker: str) -> None:
        """It has left the fleet. Who comes to its address is another."""
        for key in [key for key in self._breakers if key[0] == worker]:
            del self._breakers[key]
            self._opened.pop(key, None)
        self._show()

    def refusing(self, worker: str) -> frozenset[str]:
        """Models for which the worker is to be left out now."""
        opened = self._opened.items()
        return frozenset(model for (address, model), breaker in opened if address == worker and breaker.refuses)

    def mark(self, snapshot: FleetSnapshot) -> FleetSnapshot:
        """The snapshot, with those marked that are to be left out."""
        if not self._opened:
            return snapshot
        return replace(
            snapshot,
            executors=self._marked(snapshot.executors, _model_of),
            tokenizers=self._marked(snapshot.tokenizers, lambda _: ""),
            postprocessors=self._marked(snapshot.postprocessors, lambda _: ""),
        )

    def _marked(self, views: Sequence[V], model_of: Callable[[V], str]) -> tuple[V, ...]:
        refusing = {key: breaker.opened_at or 0.0 for key, breaker in self._opened.items() if breaker.refuses}
        pools: dict[str, list[str]] = {}
        for view in views:
            if view.state is WorkerState.SERVING:
                pools.setdefault(model_of(view), []).append(view.address)
        out = {
            (worker, model)
            for model, pool in pools.items()
            for worker in ejected(pool, {w: at for (w, m), at in refusing.items() if m == model}, self._max_share)
        }
        return tuple(replace(v, ejected=True) if (v.address, model_of(v)) in out else v for v in views)

    def _moved(self, key: Key, before: State, now: State) -> None:
        breaker = self._breakers[key]
        if now is State.CLOSED:
            self._opened.pop(key, None)
        else:
            self._opened[key] = breaker
        if now is not before:
            get_logger().warning("breaker", worker=key[0], model=key[1], before=before.value, now=now.value)
            self._metrics.breaker_moves.labels(now.value).inc()
        self._show()
        self._on_change()

    def _show(self) -> None:
        counts = Counter(breaker.state for breaker in self._opened.values())
        for state in (State.OPEN, State.HALF_OPEN):
            self._metrics.breakers.labels(state.value).set(counts[state])


@contextmanager
def watched(use: Use, where: Where = Where.BEFORE_FIRST_TOKEN) -> Iterator[None]:
    """One call to a worker: how the block ends is how the use did. A cancellation says nothing."""
    try:
        yield
        use.succeeded()
    except WeirError as error:
        use.failed(error, where)
        raise
    finally:
        use.ended()


def _model_of(executor: ExecutorView) -> str:
    return executor.model.version.model if executor.model else ""
