"""Who outside the suite may take a request, and before or after whom: never a dead, full, resting or incapable one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.router.views import DOWN, SERVING, executor, fleet, version
from weir_chassis.errors import Overloaded
from weir_router.fleet.model_version import Version
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorModel, ExternalView, Price, Traits, WorkerState
from weir_router.policies.choose import choose
from weir_router.policies.externals import able_externals, rank_beside
from weir_router.policies.least_outstanding import LeastOutstandingTokens
from weir_router.policies.policy import Candidate, Demand
from weir_router.providers.via import MAX_ROUTERS
from weir_router.regions import Residency, TenantRegions, residency

POLICY = LeastOutstandingTokens()


def external(
    address: str = "provider:p",
    *,
    state: WorkerState = SERVING,
    model: str = "m",
    revision: str = "theirs",
    region: str = "",
    abilities: frozenset[str] | None = frozenset({"chat"}),
    overflow: int | None = None,
    forwards: bool = False,
    requests: int = 0,
    tokens: int = 0,
    rest: float = 0.0,
    price: Price | None = None,
    ejected: bool = False,
) -> ExternalView:
    version = Version(model, revision, "t" * 32 if forwards else "")
    traits = Traits(instance_id=f"id-{address}", region=region, price=price, capacity=2)
    known = ExecutorModel(version, vocab_size=0, max_model_len=100, block_size=1)
    ejected_models = frozenset({model}) if ejected else frozenset[str]()
    return ExternalView(
        address, state, {model: known}, traits, forwards, abilities, overflow, requests, tokens, rest, ejected_models
    )


def demand(encoded: str = "r1", *, needs: frozenset[str] | None = frozenset({"chat"}), **fields: object) -> Demand:
    values: dict[str, object] = {"prompt_tokens": 10, "max_tokens": 10, "n": 1, "turn": 0, **fields}
    version = Version("m", encoded, "t" * 32 if encoded else "")
    return Demand(version, needs=needs, **values)  # type: ignore[arg-type]


def able(worker: ExternalView, wanted: Demand) -> bool:
    return bool(able_externals(FleetSnapshot(externals=(worker,)), wanted))


def order(wanted: Demand, local: tuple[int, ...], *workers: ExternalView) -> list[str]:
    """Addresses, best first; `local`: what each executor owes."""
    executors = [executor(f"e{i}", routed=owed) for i, owed in enumerate(local)]
    candidates = [Candidate(view, view.model) for view in executors if view.model]
    return [scored.candidate.address for scored in rank_beside(candidates, workers, wanted, POLICY)]


def test_who_is_able() -> None:
    assert able(external(), demand())
    assert able(external(abilities=None), demand(needs=frozenset({"anything"})))


@pytest.mark.parametrize(
    ("worker", "wanted"),
    [
        (external(state=DOWN), demand()),
        (external(model="other"), demand()),
        (external(), demand(needs=frozenset({"chat", "n"}))),
        (external(), demand(needs=None)),
        (external(), demand(excluded=frozenset({"provider:p"}))),
        (external(), demand(max_tokens=91)),
        (external(), demand("r1", revision="r1")),
        (external(forwards=True), demand()),
        (external(forwards=True, revision="r1"), demand(via=("id-provider:p",))),
        (external(forwards=True, revision="r1"), demand(via=("x",) * MAX_ROUTERS)),
    ],
)
def test_who_is_not(worker: ExternalView, wanted: Demand) -> None:
    assert not able(worker, wanted)


def test_a_router_is_asked_for_the_revision_that_it_says_it_has() -> None:
    assert able(external(forwards=True, revision="r1"), demand("r1"))
    assert able(external(forwards=True, revision="any"), demand(""))


def test_a_guessed_length_excludes_nobody() -> None:
    assert able(external(), demand("", prompt_tokens=5000))


def test_a_ranked_one_is_as_good_as_its_count_of_tokens() -> None:
    assert order(demand(), (10, 30), external(tokens=20)) == ["e0", "provider:p", "e1"]


def test_an_overflow_comes_after_executors_until_each_of_them_owes_enough() -> None:
    assert order(demand(), (50, 99), external(overflow=60)) == ["e0", "e1", "provider:p"]
    assert order(demand(), (60, 99), external(overflow=60)) == ["provider:p", "e0", "e1"]
    assert order(demand(), (), external(overflow=60)) == ["provider:p"]


def test_nobody_who_has_no_room_is_asked() -> None:
    full, resting = external("provider:full", requests=2), external("provider:rests", rest=3.0)
    assert order(demand(), (1,), full, resting) == ["e0"]
    with pytest.raises(Overloaded) as caught:
        order(demand(), (), resting, external("provider:later", rest=9.0))
    assert caught.value.retry_after == timedelta(seconds=3)
    with pytest.raises(Overloaded) as caught:
        order(demand(), (), full)
    assert caught.value.retry_after == timedelta(seconds=0.5)


def test_an_ejected_one_is_left_out_unless_there_is_no_other() -> None:
    failing = external("provider:bad", ejected=True)
    assert order(demand(), (), failing, external()) == ["provider:p"]
    assert order(demand(), (), failing) == ["provider:bad"]


def test_a_limit_of_cost_is_kept() -> None:
    dear = external("provider:dear", price=Price(0, 0, 10_000_000))
    cheap = external("provider:cheap", price=Price(0, 0, 1_000_000))
    assert order(demand(max_cost_micros=10), (), dear, cheap) == ["provider:cheap"]


@given(
    st.lists(st.integers(0, 100), max_size=3),
    st.lists(st.tuples(st.none() | st.integers(0, 100), st.integers(0, 100), st.booleans()), max_size=4),
)
def test_everybody_with_room_is_ranked_once_and_tiers_hold(
    owed: list[int], outside: list[tuple[int | None, int, bool]]
) -> None:
    workers = [
        external(f"x{i}", overflow=bound, tokens=tokens, requests=2 if full else 0)
        for i, (bound, tokens, full) in enumerate(outside)
    ]
    roomy = {worker.address for worker in workers if worker.has_room}
    if not owed and not roomy:
        return
    ranked = order(demand(), tuple(owed), *workers)
    assert sorted(ranked) == sorted([f"e{i}" for i in range(len(owed))] + sorted(roomy))
    last_local = max((ranked.index(f"e{i}") for i in range(len(owed))), default=-1)
    for worker in workers:
        bound = worker.overflow_above_tokens
        if worker.has_room and bound is not None and owed and min(owed) < bound:
            assert ranked.index(worker.address) > last_local


def test_a_choice_says_that_it_is_outside_and_needs_no_postprocessor() -> None:
    snapshot = FleetSnapshot(externals=(external(region="us"),))
    choice = choose(snapshot, demand(""), POLICY)
    assert (choice.executor, choice.external, choice.postprocessor, choice.region) == ("provider:p", True, "", "us")
    beside = fleet(executor())
    assert not choose(beside, demand(version().revision), POLICY).external


def test_executors_whose_text_nobody_makes_leave_a_request_to_those_outside() -> None:
    beside = replace(fleet(executor()), externals=(external(),))
    assert not choose(beside, demand(version().revision), POLICY).external
    assert choose(replace(beside, postprocessors=()), demand(version().revision), POLICY).external


def test_a_residency_holds_outside_too() -> None:
    snapshot = FleetSnapshot(externals=(external("a", region="us"), external("b", region="eu"), external("c")))
    at_home: Residency = residency({"t": TenantRegions(frozenset({"eu"}))}, "t", frozenset())
    assert [worker.address for worker in snapshot.within(at_home).externals] == ["b"]
