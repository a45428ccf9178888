"""What counts as a hang: no step, or steps that get nowhere, while there is work."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from weir_chassis.errors import Internal
from weir_executor.engine import EngineLoad
from weir_executor.engine_watch import EngineWatch

_BUSY = EngineLoad(
    step=10,
    waiting_requests=1,
    running_sequences=1,
    free_blocks=0,
    total_blocks=8,
    cached_blocks=0,
    outstanding_tokens=9,
    preemptions=0,
    last_step_seconds=0.01,
    progress=50,
)


class Watched:
    def __init__(self) -> None:
        self.now = 0.0
        self.shown: list[bool] = []
        clock: Any = SimpleNamespace(monotonic=lambda: self.now)
        nothing: Any = SimpleNamespace()
        self.watch = EngineWatch(nothing, nothing, nothing, clock, hang_seconds=10, show_serving=self.shown.append)
        self.see(_BUSY)

    def see(self, load: EngineLoad, *, after: float = 0.0) -> None:
        self.now += after
        self.watch._check_progress(load)


def test_a_step_that_does_not_end_is_a_hang() -> None:
    watched = Watched()
    watched.see(_BUSY, after=9)
    with pytest.raises(Internal, match="not ended a step for 10 s"):
        watched.see(_BUSY, after=2)


def test_steps_that_compute_nothing_new_are_a_hang() -> None:
    watched = Watched()
    for step in range(11, 16):
        watched.see(replace(_BUSY, step=step), after=2)
    with pytest.raises(Internal, match="6 steps without any progress for 10 s"):
        watched.see(replace(_BUSY, step=16), after=2)


def test_slow_progress_is_progress() -> None:
    watched = Watched()
    for step in range(20):
        watched.see(replace(_BUSY, step=step, progress=50 + step), after=9)


def test_nothing_to_do_is_no_hang_and_work_after_it_gets_its_time() -> None:
    watched = Watched()
    watched.see(replace(_BUSY, waiting_requests=0, running_sequences=0), after=1000)
    watched.see(_BUSY, after=9)
    with pytest.raises(Internal):
        watched.see(_BUSY, after=2)


def test_an_engine_that_goes_away_and_comes_back_is_shown_once_each() -> None:
    watched = Watched()
    for away in (False, True, True, False, False):
        watched.watch._show_away(away)
    assert watched.shown == [False, True]
