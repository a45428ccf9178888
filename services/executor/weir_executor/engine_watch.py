"""The eye on the engine: nothing else would notice that it has died, or that it hangs in a call to its device."""

from __future__ import annotations

from collections.abc import Callable

from weir_chassis.clock import Clock
from weir_chassis.errors import Internal
from weir_executor.engine import Engine, EngineLoad
from weir_executor.metrics import ExecutorMetrics
from weir_executor.step_fanout import StepFanout

_WATCH_SECONDS = 1.0


class EngineWatch:
    def __init__(
        self,
        engine: Engine,
        fanout: StepFanout,
        metrics: ExecutorMetrics,
        clock: Clock,
        *,
        hang_seconds: float,
        show_serving: Callable[[bool], None],
    ) -> None:
        """`hang_seconds`: what takes longer will never end, be it one step or many that get nowhere.

        `show_serving` hears when an engine that runs elsewhere goes away, and when it is back.
        """
        self._engine, self._fanout, self._metrics = engine, fanout, metrics
        self._clock, self._hang_seconds = clock, hang_seconds
        self._seen, self._moved_at = (0, 0), clock.monotonic()
        self._show_serving, self._away = show_serving, False

    async def run(self, stopped: Callable[[], None]) -> None:
        """Looks each second at the engine and at the way its words take. When either has stopped, calls `stopped` and
        raises: the process is of no more use, and whoever runs it starts another."""
        while True:
            await self._clock.sleep(_WATCH_SECONDS)
            load = self._engine.load()
            self._metrics.note_load(load)
            self._show_away(load.away)
            try:
                self._engine.check_health()
                self._fanout.check_health()
                self._check_progress(load)
            except Exception:
                stopped()
                raise

    def _show_away(self, away: bool) -> None:
        if away != self._away:
            self._away = away
            self._show_serving(not away)

    def _check_progress(self, load: EngineLoad) -> None:
        """A step that does not end, and steps that end and compute nothing new, are the same to those who wait."""
        now, idle = self._clock.monotonic(), not (load.waiting_requests or load.running_sequences)
        step, progress = self._seen
        if idle or load.progress != progress:
            self._seen, self._moved_at = (load.step, load.progress), now
        elif now - self._moved_at > self._hang_seconds:
            what = f"made {load.step - step} steps without any progress" if load.step != step else "not ended a step"
            raise Internal(f"the engine has work and has {what} for {self._hang_seconds:g} s")
