"""Workers outside the suite that a request does not go to are named with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from unit.router.views import DOWN, SERVING, demand, fleet, version
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorModel, ExternalView, Traits
from weir_router.policies.choose import rank
from weir_router.policies.externals import exclusions
from weir_router.policies.least_outstanding import LeastOutstandingTokens

MODEL = ExecutorModel(version(), 300, 100, 16)
TEXT: frozenset[str] = frozenset()


def provider(**fields: Any) -> FleetSnapshot:
    values = {"models": {"m": MODEL}, "traits": Traits(capacity=2), **fields}
    return FleetSnapshot(
        fleet().executors, (), (), externals=(ExternalView("api", values.pop("state", SERVING), **values),)
    )


def test_one_that_is_ranked_is_not_excluded() -> None:
    wanted = demand(needs=TEXT)
    assert [scored.candidate.address for scored in rank(provider(), wanted, LeastOutstandingTokens())] == ["api"]
    assert not list(exclusions(provider(), wanted))


@pytest.mark.parametrize(
    ("snapshot", "wanted", "reason"),
    [
        (provider(state=DOWN), demand(needs=TEXT), "it is down"),
        (provider(models={}), demand(needs=TEXT), "it does not serve 'm'"),
        (provider(), demand(needs=TEXT, excluded=frozenset({"api"})), "it failed this request"),
        (provider(), demand(), "it cannot do what the request needs"),
        (provider(), demand(needs=frozenset({"guides"})), "it cannot do what the request needs"),
        (provider(routed_requests=2), demand(needs=TEXT), "it can take nothing more now"),
        (provider(ejected=frozenset({"m"})), demand(needs=TEXT), "it failed too often, and is tried now and then"),
    ],
)
def test_the_reason_is_told(snapshot: FleetSnapshot, wanted: Any, reason: str) -> None:
    assert list(exclusions(snapshot, wanted)) == [("api", reason)]
