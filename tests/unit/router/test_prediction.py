"""When a first token comes: queue and prefill, by each worker's own measure."""

from __future__ import annotations

import pytest

from unit.router.views import demand, executor
from weir_router.fleet.views import ExecutorView, Load
from weir_router.policies.policy import Candidate
from weir_router.policies.prediction import (
    first_token_seconds,
    queue_seconds,
    token_seconds,
    uncached_tokens,
    waits_for_blocks,
)


def candidate(view: ExecutorView) -> Candidate:
    assert view.model is not None
    return Candidate(view, view.model)


def measured(seconds: float | None, age: float = 0.0) -> Load:
    return Load(1, 1, age, prefill_token_seconds=seconds)


def test_who_has_measured_nothing_is_as_fast_as_the_others() -> None:
    views = [executor("a", load=measured(0.001)), executor("b", load=measured(0.003)), executor("c"), executor("d")]
    assert token_seconds([candidate(view) for view in views]) == [0.001, 0.003, 0.002, 0.002]
    assert token_seconds([candidate(executor("a", load=measured(None)))]) == [1e-4]


def test_others_prompts_are_worked_off_since_they_were_reported_and_ours_are_known() -> None:
    view = executor(routed_prefill_tokens=100, foreign_prefill_tokens=500, load=measured(0.001, age=0.2))
    assert queue_seconds(view, 0.001) == pytest.approx(0.1 + 0.3)
    late = executor(routed_prefill_tokens=100, foreign_prefill_tokens=500, load=measured(0.001, age=2.0))
    assert queue_seconds(late, 0.001) == pytest.approx(0.1)


def test_what_is_held_need_not_be_computed_but_for_the_last_token() -> None:
    one = candidate(executor("a", routed_prefill_tokens=10))
    assert uncached_tokens(one, demand(prompt_tokens=50, cached_tokens={"a": 20, "b": 40})) == 30
    assert uncached_tokens(one, demand(prompt_tokens=50, cached_tokens={"a": 50})) == 1
    assert first_token_seconds(one, demand(prompt_tokens=50, cached_tokens={"a": 20}), 0.01) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("load", "waits"),
    [
        (Load(1, 1, 0.0, waiting_requests=1, free_blocks=2, total_blocks=9), True),
        (Load(1, 1, 0.0, waiting_requests=1, free_blocks=3, total_blocks=9), False),
        (Load(1, 1, 0.0, waiting_requests=0, free_blocks=0, total_blocks=9), False),
        (Load(1, 1, 0.0, waiting_requests=1), False),
        (None, False),
    ],
)
def test_a_prompt_waits_for_blocks_where_others_wait_and_its_own_are_not_free(load: Load | None, waits: bool) -> None:
    """Two blocks of 16 tokens are not enough for 40, and three are."""
    held = demand(prompt_tokens=50, cached_tokens={"a": 10})
    assert waits_for_blocks(candidate(executor("a", load=load)), held) is waits
