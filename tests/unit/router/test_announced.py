"""What is known of who announced itself, from messages that were lost, repeated and reordered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir.fleet.v1.instance_pb2 import Instance, InstanceKind
from weir_router.fleet.announced import Announced
from weir_router.fleet.membership import Place

LEASE = 10.0


def said(number: int = 0, *, lease: float = LEASE, capacity: int = 0) -> Instance:
    instance = Instance(
        instance_id=f"i{number}",
        kind=InstanceKind.INSTANCE_KIND_EXECUTOR,
        address=f"e:{number}",
        capacity=capacity,
    )
    instance.lease.FromNanoseconds(round(lease * 1e9))
    return instance


def ids(known: Announced) -> set[str]:
    return {one.instance.instance_id for one in known.heard()}


def test_only_what_is_new_is_a_change() -> None:
    known = Announced()
    assert known.hear(said(), 0.0)
    assert not known.hear(said(), 1.0), "a heartbeat"
    assert known.hear(said(capacity=5), 2.0)
    assert known.hear(said(lease=0.0), 3.0)
    assert not known.hear(said(lease=0.0), 4.0)
    assert ids(known) == set()


def test_a_heartbeat_renews_the_lease() -> None:
    known = Announced()
    known.hear(said(), 0.0)
    known.hear(said(), 7.0)
    (one,) = known.heard()
    assert one.expires_at == 17.0
    known.forget((), 16.9)
    assert ids(known) == {"i0"}
    known.forget((), 17.0)
    assert ids(known) == set()


def test_one_whose_lease_has_lapsed_is_remembered_while_it_answers() -> None:
    known = Announced()
    known.hear(said(), 0.0)
    known.forget([Place("executor", "e:0")], 1e6)
    assert ids(known) == {"i0"}
    known.forget([], 1e6)
    assert ids(known) == set()


def test_an_earlier_incarnation_is_not_taken_for_the_one_that_answers_at_its_address() -> None:
    known = Announced()
    for epoch in range(5):
        instance = said(epoch)
        instance.address, instance.epoch = "e:0", epoch
        known.hear(instance, 0.0)
    known.forget([Place("executor", "e:0")], 1e6)
    assert ids(known) == {"i4"}


def test_what_comes_late_does_not_bring_back_who_has_left() -> None:
    known = Announced()
    known.hear(said(), 0.0)
    known.hear(said(lease=0.0), 1.0)
    assert not known.hear(said(), 2.0)
    assert ids(known) == set()
    known.forget((), 12.0)
    assert known.hear(said(), 12.0), "long afterwards it is no echo"


def test_strangers_beyond_the_limit_are_not_remembered_and_the_known_are_renewed() -> None:
    known = Announced(limit=2)
    for number in range(5):
        known.hear(said(number), 0.0)
    assert ids(known) == {"i0", "i1"}
    known.hear(said(1), 9.0)
    known.forget((), 10.0)
    known.hear(said(4), 10.0)
    assert ids(known) == {"i1", "i4"}


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, LEASE]), st.floats(0, 3)), max_size=40))
def test_who_is_known_has_been_heard_within_its_lease_and_has_not_left(events: list[tuple[int, float, float]]) -> None:
    known, now, last = Announced(), 0.0, dict[int, tuple[float, float]]()
    for number, lease, pause in events:
        now += pause
        known.hear(said(number, lease=lease), now)
        known.forget((), now)
        last[number] = (lease, now)
    for number, (lease, at) in last.items():
        if f"i{number}" in ids(known):
            assert lease
            assert now < at + LEASE
