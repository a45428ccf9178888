"""Canaries under a virtual clock and a seed: a bad one is taken back soon, a good one arrives, chance moves neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_router.models.canary import Canary, Stage, judge
from weir_router.models.config import CanaryTable
from weir_router.models.outcome import End, Outcome
from weir_router.models.window import Window

TABLE = CanaryTable(step_seconds=60.0, window_seconds=600.0, steps=(0.05, 0.25, 0.5))


@dataclass(frozen=True)
class Target:
    """How a simulated target behaves."""

    error_rate: float = 0.01
    refusal_rate: float = 0.02
    median_ttft: float = 0.2

    def answer(self, random: Random) -> Outcome:
        draw = random.random()
        if draw < self.error_rate:
            return Outcome(End.FAILED, None)
        if draw < self.error_rate + self.refusal_rate:
            return Outcome(End.REFUSED, None)
        return Outcome(End.ANSWERED, self.median_ttft * random.lognormvariate(0.0, 0.5))


@dataclass
class Run:
    canary: Canary
    own_requests: int = 0
    stages: tuple[Stage, ...] = ()

    @property
    def stage(self) -> Stage:
        return self.canary.stage


def simulate(
    own: Target,
    seed: int,
    *,
    requests: int = 4000,
    table: CanaryTable = TABLE,
    until: Callable[[Run], bool] = lambda _: False,
) -> Run:
    """Five requests a second, each to the canary with the probability of its share."""
    random, baseline, run = Random(seed), Target(), Run(Canary(table, final_share=0.6))
    for number in range(requests):
        now = number / 5
        if random.random() < run.canary.share:
            run.own_requests += 1
            changed = run.canary.note(own.answer(random), now)
        else:
            changed = run.canary.note_baseline(baseline.answer(random), now)
        if changed:
            run.stages += (run.stage,)
        if until(run):
            break
    return run


def over(run: Run) -> bool:
    return run.stage is Stage.ROLLED_BACK


@pytest.mark.parametrize(
    ("own", "within", "because"),
    [
        (Target(error_rate=1.0), 30, "error rate 30 of 30"),
        (Target(error_rate=0.3), 60, "error rate"),
        (Target(refusal_rate=0.5), 40, "refusals"),
        (Target(median_ttft=1.0), 40, "TTFT at p90"),
    ],
    ids=["dead", "failing", "refusing", "slow"],
)
@pytest.mark.parametrize("seed", range(5))
def test_a_bad_canary_is_rolled_back_within_so_many_of_its_requests(
    own: Target, within: int, because: str, seed: int
) -> None:
    run = simulate(own, seed, until=over)
    assert over(run), run.canary.reason
    assert run.own_requests <= within
    assert because in run.canary.reason
    assert run.canary.share == 0.0


@pytest.mark.parametrize("seed", range(10))
def test_a_canary_as_good_as_the_baseline_arrives_at_its_weight(seed: int) -> None:
    run = simulate(Target(), seed, requests=20_000, until=lambda run: run.stage is Stage.ARRIVED)
    assert run.stage is Stage.ARRIVED
    assert run.canary.share == 0.6


@pytest.mark.parametrize("seed", range(10))
def test_chance_does_not_make_it_flap(seed: int) -> None:
    """Its share only grows; it is told of a hold once for each step at most."""
    run = simulate(Target(), seed + 100)
    assert Stage.ROLLED_BACK not in run.stages
    assert len(run.stages) <= 2 * 4


def test_one_that_gets_bad_after_it_has_arrived_is_rolled_back_too() -> None:
    canary, random = Canary(TABLE, final_share=0.6), Random(1)
    now = 0.0
    while canary.share < 0.6:
        now += 0.2
        canary.note(Outcome(End.ANSWERED, 0.1), now)
        canary.note_baseline(Outcome(End.ANSWERED, 0.1), now)
    for _ in range(500):
        now += 0.2
        canary.note(Target(error_rate=0.5).answer(random), now)
        canary.note_baseline(Target().answer(random), now)
    assert canary.stage is Stage.ROLLED_BACK


def test_what_is_rolled_back_stays_so_however_well_things_go() -> None:
    run = simulate(Target(error_rate=1.0), 0, until=over)
    for number in range(2000):
        assert not run.canary.note_baseline(Outcome(End.ANSWERED, 0.1), 1e4 + number)
    assert run.canary.share == 0.0


def test_one_that_is_to_be_held_keeps_its_step_while_it_is_worse_and_goes_on_when_it_is_not() -> None:
    table = TABLE.model_copy(update={"on_worse": "hold"})
    run = simulate(Target(error_rate=1.0), 0, table=table)
    assert (run.stage, run.canary.share) == (Stage.HELD, 0.05)
    assert "error rate" in run.canary.reason
    for number in range(4000):
        run.canary.note(Outcome(End.ANSWERED, 0.1), 2000.0 + number)
        run.canary.note_baseline(Outcome(End.ANSWERED, 0.1), 2000.0 + number)
    assert run.stage is Stage.ARRIVED


def test_it_takes_no_step_without_time_nor_without_requests() -> None:
    good = Outcome(End.ANSWERED, 0.1)
    hasty, idle = Canary(TABLE, 0.6), Canary(TABLE, 0.6)
    for _ in range(500):
        hasty.note(good, 1.0)
        hasty.note_baseline(good, 1.0)
    for number in range(500):
        idle.note_baseline(good, float(number))
    assert hasty.share == idle.share == 0.05
    assert "0 of 30 requests" in idle.reason


def test_steps_beyond_its_weight_are_left_out() -> None:
    assert Canary(TABLE, final_share=0.1).share == 0.05
    assert Canary(TABLE, final_share=0.03).share == 0.03


def test_requests_that_their_clients_left_neither_help_nor_harm() -> None:
    canary = Canary(TABLE, 0.6)
    for number in range(500):
        canary.note(Outcome(End.LEFT, None), float(number))
        canary.note_baseline(Outcome(End.ANSWERED, 0.1), float(number))
    assert (canary.stage, canary.share) == (Stage.RAMPING, 0.05)


def test_a_canary_that_hangs_is_seen_by_how_long_its_clients_waited_before_they_left() -> None:
    canary = Canary(TABLE, 0.6)
    for number in range(40):
        canary.note(Outcome(End.LEFT, 30.0), number / 5)
        canary.note_baseline(Outcome(End.ANSWERED, 0.1), number / 5)
    assert canary.stage is Stage.ROLLED_BACK
    assert "TTFT" in canary.reason


@given(st.integers(0, 60), st.integers(0, 60), st.integers(30, 60), st.integers(30, 60))
def test_only_a_worse_rate_is_judged_worse(own_bad: int, base_bad: int, own: int, base: int) -> None:
    windows = []
    for bad, count in ((own_bad, own), (base_bad, base)):
        window = Window(seconds=1.0)
        for number in range(count):
            window.add(Outcome(End.FAILED if number < bad else End.ANSWERED, 0.1), 0.0)
        windows.append(window)
    verdict = judge(windows[0], windows[1], TABLE)
    increase = min(own_bad, own) / own - min(base_bad, base) / base
    assert bool(verdict.reason) == (increase > TABLE.max_error_increase)
    assert not verdict.certain or verdict.reason
