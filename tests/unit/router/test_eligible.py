"""Who may take a request, who may not and why, and that it is worked out once for all snapshots of a generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given

from unit.router.policy_contract import demands, fleets
from unit.router.views import DOWN, demand, executor, fleet, tokenizer, unknown_executor
from weir_chassis.errors import NoWorker, WeirError
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorView, Role
from weir_router.policies.eligible import eligible, exclusions
from weir_router.policies.policy import Demand
from weir_router.regions import Residency


@given(fleets, demands)
def test_everybody_is_eligible_or_excluded_for_a_reason(views: list[ExecutorView], wanted: Demand) -> None:
    snapshot = fleet(*views)
    try:
        able = {candidate.address for candidate in eligible(snapshot, wanted)}
    except WeirError:
        able = set()
    excluded = dict(exclusions(snapshot, wanted))
    assert able.isdisjoint(excluded)
    assert able | set(excluded) == {view.address for view in views}
    assert all(excluded.values())


@pytest.mark.parametrize(
    ("view", "wanted", "reason"),
    [
        (executor(state=DOWN), demand(), "it is down"),
        (replace(unknown_executor("e"), state=executor().state), demand(), "it has not said what it serves"),
        (executor(model="n"), demand(), "it serves 'n'"),
        (executor(revision="r2"), demand(), "it holds revision r2/"),
        (executor(), demand(adapter="f1"), "it has not loaded the adapter"),
        (executor(revision="r2"), demand(revision="r2"), "no tokenizer holds its revision"),
        (executor(embedding_size=0), demand(max_tokens=0), "it makes no embeddings"),
        (executor(role=Role.PREFILL), demand(), "it only prefills"),
        (executor(), demand(excluded=frozenset({"e"})), "it failed this request"),
        (executor(max_model_len=15), demand(), "20 tokens do not fit its context of 15"),
    ],
)
def test_the_reason_is_told(view: ExecutorView, wanted: Demand, reason: str) -> None:
    ((address, told),) = exclusions(fleet(view), wanted)
    assert address == "e"
    assert told.startswith(reason)


def test_who_is_ejected_is_left_out_unless_there_is_nobody_else() -> None:
    snapshot = fleet(executor("a", ejected=True), executor("b"))
    assert [candidate.address for candidate in eligible(snapshot, demand())] == ["b"]
    assert dict(exclusions(snapshot, demand())) == {"a": "it failed too often, and is tried now and then"}
    alone = fleet(executor("a", ejected=True))
    assert [candidate.address for candidate in eligible(alone, demand())] == ["a"]
    assert not list(exclusions(alone, demand()))


def follow(snapshot: FleetSnapshot, change: Callable[[ExecutorView], ExecutorView]) -> FleetSnapshot:
    """The next snapshot of the same generation."""
    views = tuple(map(change, snapshot.executors))
    return FleetSnapshot(views, snapshot.tokenizers, snapshot.postprocessors, 1, kept_before=snapshot.kept)


def test_counts_are_of_now_and_facts_are_worked_out_once() -> None:
    first = fleet(executor("a"), executor("b", state=DOWN), executor("c"))
    assert [candidate.address for candidate in eligible(first, demand())] == ["a", "c"]
    second = follow(first, lambda view: replace(view, routed_tokens=7))
    assert [candidate.executor.routed_tokens for candidate in eligible(second, demand())] == [7, 7]
    assert second.kept is first.kept
    # What a snapshot keeps is not looked at again, which shows that it is kept: facts do not change in a generation.
    third = follow(first, lambda view: replace(view, state=DOWN))
    assert [candidate.address for candidate in eligible(third, demand())] == ["a", "c"]
    with pytest.raises(NoWorker):
        eligible(replace(third, tokenizers=(tokenizer(),)), demand())


def test_an_error_is_not_kept_and_a_region_has_its_own() -> None:
    snapshot = fleet(executor("a", region="eu"), executor("b", region="us"), tokenizers=(tokenizer(region="eu"),))
    confined = snapshot.within(Residency(frozenset({"eu"})))
    assert [candidate.address for candidate in eligible(confined, demand())] == ["a"]
    assert [candidate.address for candidate in eligible(snapshot, demand())] == ["a", "b"]
    assert snapshot.within(Residency(frozenset({"eu"}))).kept is confined.kept
    with pytest.raises(NoWorker):
        eligible(snapshot, demand(excluded=frozenset({"a", "b"})))
    assert [candidate.address for candidate in eligible(snapshot, demand())] == ["a", "b"]
