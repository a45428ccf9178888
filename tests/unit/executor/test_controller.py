"""How many drafts pay: alone, in company, well guessed and badly."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.paged.speculation.controller import Acceptance, Controller, CostMeter, StepCosts, expected_tokens

# A step of one token takes 17 ms; sixteen more tokens take as long as the weights.
_COSTS = StepCosts(base=16e-3, per_token=1e-3, per_draft=0.0)


def _lengths(rate: float, num_rows: int, costs: StepCosts = _COSTS, most: int = 8) -> list[int]:
    return Controller().lengths([rate] * num_rows, [most] * num_rows, num_rows, costs)


def test_alone_many_drafts_pay_and_in_a_large_batch_none() -> None:
    by_batch = [_lengths(0.8, num_rows)[0] for num_rows in (1, 4, 16, 64, 256)]
    assert by_batch[0] == 8
    assert by_batch == sorted(by_batch, reverse=True)
    assert by_batch[-1] == 0


def test_the_better_the_guesses_the_more_of_them() -> None:
    by_rate = [_lengths(rate, 4)[0] for rate in (0.0, 0.2, 0.5, 0.8, 0.95, 1.0)]
    assert by_rate == sorted(by_rate)
    assert (by_rate[0], by_rate[-1]) == (0, 8)


def test_drafts_that_take_as_long_as_a_step_do_not_pay() -> None:
    assert _lengths(0.9, 1, StepCosts(16e-3, 1e-3, per_draft=17e-3)) == [0]
    assert _lengths(0.9, 1, StepCosts(16e-3, 1e-3, per_draft=2e-3))[0] >= 4


def test_rows_of_one_step_differ() -> None:
    assert Controller().lengths([0.9, 0.05, 0.9], [8, 8, 2], 3, _COSTS) == [8, 0, 2]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 16)), min_size=1, max_size=40),
    st.integers(0, 600),
    st.tuples(st.floats(1e-4, 1), st.floats(0, 0.1), st.floats(0, 0.1)),
    st.booleans(),
)
def test_what_is_decided_is_never_slower_than_going_without(
    rows: list[tuple[float, int]], others: int, costs: tuple[float, float, float], is_on: bool
) -> None:
    """By its own reckoning of tokens per second."""
    controller, model, num_tokens = Controller(), StepCosts(*costs), len(rows) + others
    controller.is_on = is_on
    rates, limits = [rate for rate, _ in rows], [limit for _, limit in rows]
    lengths = controller.lengths(rates, limits, num_tokens, model)
    assert all(0 <= length <= limit for length, limit in zip(lengths, limits, strict=True))
    tokens = sum(expected_tokens(rate, length) for rate, length in zip(rates, lengths, strict=True))
    seconds = model.seconds(num_tokens + sum(lengths), max(lengths))
    assert tokens / seconds >= len(rows) / model.seconds(num_tokens) * (1 - 1e-9)
    assert controller.is_on or not any(lengths), "it does not try in the first step of a rest"


def test_it_does_not_flicker_at_the_edge() -> None:
    """Where drafts are worth next to nothing, whoever drafts goes on and whoever does not stays without."""
    edge = StepCosts(16e-3, 1e-3, per_draft=13.2e-3)
    off, on = Controller(), Controller()
    off.is_on = False
    outcomes = {(controller.lengths([0.9], [1], 1, edge)[0], controller.is_on) for controller in (off, on)}
    assert outcomes == {(0, False), (1, True)}
    assert (off.is_on, on.is_on) == (False, True)


def test_in_a_rest_one_row_tries_again_ever_more_rarely() -> None:
    controller, hopeless = Controller(), StepCosts(16e-3, 1e-3, per_draft=1.0)
    tries = [step for step in range(400) if any(controller.lengths([0.5] * 3, [0, 8, 8], 3, hopeless))]
    assert tries == [32, 33, 98, 99, 228, 229]
    assert controller.lengths([0.9] * 3, [0, 8, 8], 3, _COSTS)[1:] != [0, 0]
    tries = [step for step in range(40) if any(controller.lengths([0.5] * 3, [0, 8, 8], 3, hopeless))]
    assert tries == [32, 33], "what paid in between makes it hopeful again"


def test_a_rest_is_looked_at_in_some_of_its_steps() -> None:
    controller, hopeless = Controller(), StepCosts(16e-3, 1e-3, per_draft=1.0)
    assert not controller.rests(), "it begins on"
    looked, tried = [], []
    for step in range(80):
        if not controller.rests():
            looked.append(step)
            if any(controller.lengths([0.5], [8], 1, hopeless)):
                tried.append(step)
    assert looked[:8] == [0, 8, 16, 24, 32, 33, 34, 42]
    assert tried == [32, 33]


def test_expected_tokens_are_a_sum() -> None:
    for rate in (0.0, 0.3, 0.99, 1.0):
        assert expected_tokens(rate, 5) == pytest.approx(sum(rate**i for i in range(6)))


# ── acceptance ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_acceptance_comes_near_what_happens_and_follows_a_change() -> None:
    dice, acceptance = random.Random(1), Acceptance()
    for truth in (0.9, 0.2):
        for _ in range(100):
            stood = next((i for i in range(4) if dice.random() > truth), 4)
            acceptance.observe(4, stood)
        assert acceptance.rate == pytest.approx(truth, abs=0.15)


def test_after_a_rest_drafts_are_tried_again() -> None:
    acceptance = Acceptance()
    before = acceptance.rate
    for _ in range(30):
        acceptance.observe(3, 0)
    assert acceptance.rate < 0.15
    for _ in range(100):
        acceptance.observe(0, 0)
    assert acceptance.rate == pytest.approx(before, abs=0.1)


def test_only_the_drafts_up_to_the_first_that_failed_were_tried() -> None:
    one, other = Acceptance(), Acceptance()
    one.observe(8, 1)
    other.observe(2, 1)
    assert one.rate == other.rate


# ── what a step costs ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_is_found_in_noise() -> None:
    dice, meter = random.Random(2), CostMeter()
    for _ in range(200):
        num_tokens = dice.choice((1, 2, 5, 9, 40))
        meter.observe(num_tokens, (8e-3 + num_tokens * 5e-4) * dice.uniform(0.95, 1.05))
    costs = meter.costs(per_draft=1e-3)
    assert costs.base == pytest.approx(8e-3, rel=0.1)
    assert costs.per_token == pytest.approx(5e-4, rel=0.1)
    assert costs.per_draft == 1e-3


def test_steps_that_are_all_alike_are_split_as_is_usual() -> None:
    meter = CostMeter()
    for _ in range(10):
        meter.observe(1, 17e-3)
    costs = meter.costs(None)
    assert costs.base == pytest.approx(16e-3)
    assert costs.per_token == pytest.approx(1e-3)


@given(st.lists(st.tuples(st.integers(1, 512), st.floats(1e-6, 10)), max_size=30))
def test_costs_are_never_less_than_nothing(steps: list[tuple[int, float]]) -> None:
    meter = CostMeter()
    for num_tokens, seconds in steps:
        meter.observe(num_tokens, seconds)
    costs = meter.costs(None)
    assert costs.base >= -1e-9
    assert costs.per_token >= 0
    assert costs.seconds(1) > 0
