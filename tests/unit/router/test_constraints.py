"""An offer is feasible when brute force says so; the nearest one is beaten by none."""

from __future__ import annotations

from math import inf

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import assume, given
from hypothesis import strategies as st

from weir.inference.v1.routing_pb2 import Constraints
from weir_chassis.status import from_status, to_status, wrong_fields
from weir_router.models.constraints import Bounds, Infeasible, Offer, excesses, nearest, solve
from weir_router.models.target import Target
from weir_router.regions import Residency

# Few values, so that equals and neighbours meet often.
SECONDS = st.sampled_from([0.01, 0.1, 0.5, 1.0, 2.0])
MICROS = st.sampled_from([0, 1, 10, 100, 1000])
QUALITY = st.sampled_from([0.0, 0.3, 0.6, 1.0])
REGIONS = st.sampled_from(["", "eu", "us"])
OFFERS = st.lists(
    st.builds(
        Offer,
        target=st.sampled_from([Target("a"), Target("b"), Target("b", "r2")]),
        worker=st.sampled_from(["w1", "w2"]),
        revision=st.just("r1"),
        ttft_seconds=SECONDS,
        cost_micros=st.none() | MICROS,
        quality=st.none() | QUALITY,
        region=REGIONS,
    ),
    min_size=1,
    max_size=8,
)
BOUNDS = st.builds(Bounds, st.none() | SECONDS, st.none() | MICROS, st.none() | QUALITY)
RESIDENCIES = st.sampled_from([Residency(None), Residency(frozenset({"eu"})), Residency(frozenset({"eu", "us"}))])


def meets(offer: Offer, bounds: Bounds, residency: Residency) -> bool:
    """By the contract's own words, without a number."""
    if bounds.max_ttft_seconds is not None and not offer.ttft_seconds <= bounds.max_ttft_seconds:
        return False
    if bounds.max_cost_micros is not None and (offer.cost_micros is None or offer.cost_micros > bounds.max_cost_micros):
        return False
    if bounds.min_quality is not None and (offer.quality is None or offer.quality < bounds.min_quality):
        return False
    return residency.regions is None or offer.region in residency.regions


@given(OFFERS, BOUNDS, RESIDENCIES)
def test_the_first_that_meets_them_all_is_taken_and_else_the_request_is_refused(
    offers: list[Offer], bounds: Bounds, residency: Residency
) -> None:
    good = [offer for offer in offers if meets(offer, bounds, residency)]
    if good:
        assert solve(offers, bounds, residency) is good[0]
    else:
        with pytest.raises(Infeasible):
            solve(offers, bounds, residency)


@given(OFFERS, BOUNDS, RESIDENCIES)
def test_no_offer_beats_the_nearest(offers: list[Offer], bounds: Bounds, residency: Residency) -> None:
    """None breaks a part of what it breaks, each by no more, and one by less."""
    best = excesses(nearest(offers, bounds, residency), bounds, residency)
    for offer in offers:
        other = excesses(offer, bounds, residency)
        if set(other) <= set(best):
            assert not (other != best and all(other[name] <= best[name] for name in other))


@given(OFFERS, BOUNDS, RESIDENCIES)
def test_who_asks_for_what_the_nearest_offers_gets_it(
    offers: list[Offer], bounds: Bounds, residency: Residency
) -> None:
    assume(not any(meets(offer, bounds, residency) for offer in offers))
    with pytest.raises(Infeasible) as caught:
        solve(offers, bounds, residency)
    near, broken = caught.value.nearest, caught.value.broken
    assert broken
    wider = Bounds(
        near.ttft_seconds if "max_ttft" in broken else bounds.max_ttft_seconds,
        near.cost_micros if "max_cost_micros" in broken else bounds.max_cost_micros,
        near.quality if "min_quality" in broken else bounds.min_quality,
    )
    anywhere = Residency(None) if "regions" in broken else residency
    assert meets(near, wider, anywhere)


def offer(**fields: object) -> Offer:
    told = {"ttft_seconds": 0.2, "cost_micros": 50, "quality": 0.5, "region": "eu"} | fields
    return Offer(target=Target("m"), worker="w", revision="r1", **told)  # type: ignore[arg-type]


def test_a_refusal_names_the_constraints_and_the_nearest_offer_on_the_wire_too() -> None:
    with pytest.raises(Infeasible) as caught:
        solve([offer(), offer(cost_micros=None)], Bounds(0.1, 40), Residency(None))
    seen = from_status(to_status(caught.value))
    assert wrong_fields(seen) == ["routing.constraints.max_ttft", "routing.constraints.max_cost_micros"]
    assert seen.metadata == {
        "constraints": "max_ttft,max_cost_micros",
        "nearest_model": "m",
        "nearest_revision": "r1",
        "nearest_ttft_seconds": "0.2",
        "nearest_cost_micros": "50",
        "nearest_quality": "0.5",
        "nearest_region": "eu",
    }
    assert "max_cost_micros (it may cost 50)" in seen.message


@pytest.mark.parametrize(
    ("fields", "bounds", "over"),
    [
        ({}, Bounds(0.1), {"max_ttft": 1.0}),
        ({}, Bounds(None, 40), {"max_cost_micros": 0.25}),
        ({"cost_micros": 3}, Bounds(None, 0), {"max_cost_micros": 3.0}),
        ({"cost_micros": None}, Bounds(None, 40), {"max_cost_micros": inf}),
        ({}, Bounds(None, None, 1.0), {"min_quality": 0.5}),
        ({"quality": None}, Bounds(None, None, 0.0), {"min_quality": inf}),
        ({}, Bounds(0.2, 50, 0.5), {}),
    ],
)
def test_how_far_an_offer_is_from_what_is_asked(
    fields: dict[str, object], bounds: Bounds, over: dict[str, float]
) -> None:
    assert excesses(offer(**fields), bounds, Residency(None)) == pytest.approx(over)


def test_a_fallback_region_is_none_while_anybody_at_home_may_take_it() -> None:
    residency = Residency(frozenset({"eu"}), frozenset({"uk"}))
    home, away = offer(cost_micros=90), offer(region="uk", cost_micros=1)
    with pytest.raises(Infeasible) as caught:
        solve([home, away], Bounds(None, 50), residency)
    assert caught.value.nearest is home
    assert solve([away, offer(region="us")], Bounds(None, 50), residency) is away


def test_bounds_are_those_that_are_set() -> None:
    assert Bounds.of(Constraints(regions=["eu"])) is None
    assert Bounds.of(Constraints(max_cost_micros=0)) == Bounds(None, 0, None)
    whole = Constraints(max_ttft=Duration(nanos=500_000_000), max_cost_micros=7, min_quality=0.0)
    assert Bounds.of(whole) == Bounds(0.5, 7, 0.0)
