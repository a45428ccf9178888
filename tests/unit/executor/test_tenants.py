"""Virtual token counters: what is charged, who is lifted, what is remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.paged import tenants as module
from weir_executor.paged.tenants import FairShare, TenantLimits, Tenants, TenantUse


def test_limits_are_the_named_ones_else_those_of_any_else_none() -> None:
    tenants = Tenants({"acme": TenantLimits(weight=4), "*": TenantLimits(max_blocks=8)})
    assert tenants.of("acme") == TenantLimits(weight=4)
    assert tenants.of("someone").max_blocks == tenants.of("").max_blocks == 8
    assert Tenants().of("acme") == TenantLimits()


def test_tokens_are_charged_by_weight_and_a_generated_one_twice() -> None:
    share = FairShare(Tenants({"acme": TenantLimits(weight=4)}))
    share.enter("acme")
    share.enter("other")
    for tenant in ("acme", "other"):
        share.charge(tenant, prompt=100, generated=10)
    assert (share.counter("acme"), share.counter("other")) == (30, 120)


def test_who_comes_back_is_lifted_and_keeps_what_it_had_been_ahead() -> None:
    share = FairShare(Tenants())
    share.enter("busy")
    share.enter("away")
    share.charge("away", prompt=5)
    share.leave("away")
    share.charge("busy", prompt=1000)
    share.enter("away")
    assert share.counter("away") == 1000, "no credit for being away"
    share.charge("away", prompt=500)
    share.leave("away")
    share.enter("away")
    assert share.counter("away") == 1500, "leaving for a moment pays nothing back"


def test_the_first_after_a_pause_starts_where_the_last_one_left() -> None:
    share = FairShare(Tenants())
    share.enter("a")
    share.charge("a", prompt=700)
    share.leave("a")
    share.enter("b")
    assert share.counter("b") == 700
    share.enter("a")
    assert share.counter("a") == 700


def test_a_tenant_is_active_until_its_last_request_leaves() -> None:
    share = FairShare(Tenants())
    share.enter("a")
    share.enter("a")
    share.charge("a", prompt=7)
    share.leave("a")
    assert share.counter("a") == 7


def test_strangers_are_forgotten_in_the_order_they_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_IDLE", 3)
    share = FairShare(Tenants())
    for number in range(10):
        share.enter(str(number))
        share.leave(str(number))
    assert list(share._idle) == ["7", "8", "9"]
    assert not share._active
    assert not share._live


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["enter", "leave", "charge"])), max_size=40))
def test_no_order_of_events_gives_credit(events: list[tuple[str, str]]) -> None:
    """An active counter never falls, and none starts below the least active one."""
    share, live = FairShare(Tenants()), {"a": 0, "b": 0}
    for tenant, event in events:
        before, least = dict(share._active), min(share._active.values(), default=0.0)
        if event == "enter":
            share.enter(tenant)
            live[tenant] += 1
            assert share.counter(tenant) >= least
        elif live[tenant] and event == "leave":
            share.leave(tenant)
            live[tenant] -= 1
        elif live[tenant]:
            share.charge(tenant, prompt=3, generated=1)
        assert share._active.keys() == {name for name, count in live.items() if count}
        assert all(share._active[name] >= before[name] for name in before.keys() & share._active.keys())


def test_use_counts_up_and_down_and_keeps_no_zeros() -> None:
    use = TenantUse()
    use.add("a", slots=1, blocks=5)
    use.add("a", slots=-1, blocks=-4)
    assert (use.slots, use.blocks) == ({}, {"a": 1})
    with pytest.raises(AssertionError):
        use.add("a", blocks=-2)
