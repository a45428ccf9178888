"""Whoever names a worker, and in whatever order: one address is one worker, and the fleet is what the rules say."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from weir.fleet.v1.instance_pb2 import Instance, InstanceKind
from weir_router.fleet.membership import Heard, Member, Place, Source, membership, newest

E1, E2 = Place("executor", "e:1"), Place("executor", "e:2")
ADDRESSES = st.sampled_from([f"w:{number}" for number in range(6)])
KINDS = st.sampled_from(["executor", "tokenizer", "postprocess", "kvstore", "router"])


def instance(address: str = "e:1", *, instance_id: str = "i", epoch: int = 1, kind: str = "executor") -> Instance:
    value = InstanceKind.Value(f"INSTANCE_KIND_{kind.upper()}")
    return Instance(instance_id=instance_id, epoch=epoch, kind=value, address=address)


def heard(expires_at: float = 10.0, **told: object) -> Heard:
    return Heard.of(instance(**told), expires_at)  # type: ignore[arg-type]


places = st.builds(Place, st.sampled_from(["executor", "tokenizer", "postprocess"]), ADDRESSES)
announcements = st.builds(
    lambda address, number, epoch, kind, expires_at: heard(
        expires_at, address=address, instance_id=f"i{number}", epoch=epoch, kind=kind
    ),
    ADDRESSES,
    st.integers(0, 5),
    st.integers(0, 3),
    KINDS,
    st.floats(0, 20),
)
answers = st.sets(places, max_size=6)


@given(
    st.lists(places),
    st.tuples(st.lists(places), st.lists(places)),
    st.lists(announcements, max_size=8),
    answers,
    st.integers(1, 20),
)
def test_the_fleet_is_what_the_rules_say(
    static: list[Place],
    named_by: tuple[list[Place], list[Place]],
    said: list[Heard],
    answering: set[Place],
    limit: int,
) -> None:
    resolved, hosted = named_by
    found = membership(static, resolved, hosted, said, answering, now=10.0, limit=limit)
    members = found.members
    standing = [one for one in said if one.expires_at > 10.0 or one.place in answering]
    announced = [one.place for one in standing]
    for place, member in members.items():
        named: dict[Source, Sequence[Place | None]] = {"static": static, "dns": resolved, "hosted": hosted}
        assert place in (named | {"announced": announced})[member.source]
        if member.instance is not None:
            assert Heard.of(member.instance, 0.0).place == place
            epochs = [one.instance.epoch for one in standing if one.place == place]
            assert member.instance.epoch == max(epochs)
    for kind in ("executor", "tokenizer", "postprocess"):
        count = sum(place.kind == kind for place in members)
        assert count <= limit
        assert (count == limit) or kind not in found.left_out
    if not found.left_out:
        assert {*static, *resolved} <= members.keys()


@given(st.lists(places, max_size=5), st.permutations([heard(address=f"w:{i}", instance_id=f"i{i}") for i in range(4)]))
def test_the_order_of_announcements_does_not_matter(resolved: list[Place], said: list[Heard]) -> None:
    in_order = sorted(said, key=lambda one: one.instance.address)
    assert membership((), resolved, (), said, (), now=0.0) == membership((), resolved, (), in_order, (), now=0.0)


def test_a_source_that_is_surer_names_the_worker_and_what_it_announced_is_known() -> None:
    found = membership([E1], [E1, E2], (), [heard(), heard(address="e:2")], (), now=0.0)
    assert found.members == {E1: Member("static", instance()), E2: Member("dns", instance("e:2"))}


def test_the_latest_incarnation_at_an_address_counts() -> None:
    old, new = heard(instance_id="old", epoch=1), heard(instance_id="new", epoch=2)
    assert newest([new, old]) == newest([old, new]) == {E1: new.instance}


def test_a_lease_that_has_lapsed_is_gone_unless_its_worker_answers() -> None:
    said = [heard(expires_at=5.0)]
    assert E1 in membership((), (), (), said, (), now=4.9).members
    assert E1 not in membership((), (), (), said, (), now=5.0).members
    assert E1 in membership((), (), (), said, {E1}, now=1e9).members, "an outage of the broker empties no fleet"
    assert E1 not in membership((), (), (), said, {E2}, now=5.0).members


def test_where_there_are_too_many_the_configured_and_the_answering_stay() -> None:
    said = [heard(address=f"w:{number}", instance_id=f"i{number}") for number in range(10)]
    busy = Place("executor", "w:9")
    found = membership([E2], (), (), said, {busy}, now=0.0, limit=3)
    assert list(found.members) == [E2, busy, Place("executor", "w:0")]
    assert found.left_out == {"executor": 8}


def test_who_serves_no_request_of_a_router_is_no_member() -> None:
    assert membership((), (), (), [heard(kind="kvstore"), heard(kind="router")], (), now=0.0).members == {}
