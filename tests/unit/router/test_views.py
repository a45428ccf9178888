"""What follows from the facts about one worker."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from unit.router.views import executor
from weir_router.fleet.views import ExecutorView, ExternalView, Load, Role, Traits, WorkerState

COUNTS = frozenset({"routed_tokens", "foreign_tokens", "routed_prefill_tokens", "foreign_prefill_tokens"})


def test_a_recounted_view_differs_in_its_counts_only() -> None:
    """It is written out field by field, and a new field of the class is easily forgotten there."""
    traits, load = Traits("i", epoch=3, region="eu"), Load(epoch=3, sequence=9, age_seconds=0.5)
    view = replace(
        executor("e:1", adapters={"x": "f"}), role=Role.DECODE, traits=traits, load=load, ramp=0.5, ejected=True
    )
    empty = ExecutorView("", WorkerState.DOWN, None)
    same = [each.name for each in fields(view) if getattr(view, each.name) == getattr(empty, each.name)]
    assert set(same) <= COUNTS, "every other field has a value of its own, or the test would miss it"
    assert view.recounted(1, 2, 3, 4) == replace(
        view, routed_tokens=1, foreign_tokens=2, routed_prefill_tokens=3, foreign_prefill_tokens=4
    )


def test_an_executor_owes_what_anybody_has_given_it() -> None:
    assert executor("e:1").recounted(1, 2, 3, 4).outstanding_tokens == 3


@pytest.mark.parametrize(("role", "decodes"), [(Role.PREFILL, False), (Role.DECODE, True), (Role.BOTH, True)])
def test_who_takes_requests_to_their_end(role: Role, decodes: bool) -> None:
    assert replace(executor("e:1"), role=role).decodes is decodes


@pytest.mark.parametrize(
    ("capacity", "routed", "rest_seconds", "has_room"),
    [(2, 1, 0.0, True), (2, 2, 0.0, False), (2, 1, 0.5, False), (0, 0, 0.0, False)],
)
def test_who_takes_it_all_has_room_up_to_its_capacity_while_it_does_not_rest(
    capacity: int, routed: int, rest_seconds: float, has_room: bool
) -> None:
    traits = Traits(capacity=capacity)
    view = ExternalView("x", WorkerState.SERVING, traits=traits, routed_requests=routed, rest_seconds=rest_seconds)
    assert view.has_room is has_room
