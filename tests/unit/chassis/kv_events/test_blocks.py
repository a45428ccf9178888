from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from unit.chassis.kv_events.making import everything, name, removed, some_event, stored
from weir.inference.v1.kv_event_pb2 import KvEvent, KvReset
from weir_chassis.event_log import Batch
from weir_chassis.kv_events import blocks
from weir_chassis.kv_events.blocks import MAX_EVENT_BLOCKS, HeldBlocks


def held_after(*events: KvEvent) -> HeldBlocks:
    held = HeldBlocks()
    for event in events:
        held.apply(event)
    return held


def test_each_block_of_a_chain_has_the_one_before_it_as_parent() -> None:
    held = held_after(stored(1, 3), stored(10, 2, name(1)), removed(3))
    assert held.parents("ram") == {name(1): b"", name(2): name(1), name(10): name(1), name(11): name(10)}
    assert len(held) == 4


def test_tiers_and_namespaces_are_told_apart() -> None:
    space = b"n" * 16
    held = held_after(stored(1), stored(1, tier="disk"), stored(1, namespace=space), removed(1, tier="disk"))
    assert everything(held) == {("ram", b""): {name(1): b""}, ("ram", space): {name(1): b""}}


def test_clearing_is_of_one_tier_and_all_its_namespaces() -> None:
    space = b"n" * 16
    told = [stored(1), stored(2, namespace=space), stored(3, tier="disk"), blocks.cleared(tier="ram")]
    assert everything(held_after(*told)) == {("disk", b""): {name(3): b""}}


def test_a_snapshot_has_one_event_for_each_run() -> None:
    held = held_after(stored(1, 3), stored(10, 2, name(1)), removed(3))
    assert list(held.snapshot()) == [stored(1, 2), stored(10, 2, name(1))]


def test_a_snapshot_is_of_its_moment() -> None:
    held = held_after(stored(1, 3))
    snapshot = held.snapshot()
    held.apply(removed(1, 2, 3))
    assert list(snapshot) == [stored(1, 3)]


def test_a_long_chain_comes_in_several_events_that_hang_together() -> None:
    chain = [name(i) for i in range(2 * MAX_EVENT_BLOCKS + 5)]
    events = list(blocks.stored(chain, b"", tier="ram"))
    assert [HeldBlocks().size_of(event) for event in events] == [MAX_EVENT_BLOCKS, MAX_EVENT_BLOCKS, 5]
    held = held_after(*events)
    assert held.parents("ram") == dict(zip(chain, [b"", *chain], strict=False))
    assert list(held.snapshot()) == events
    gone = list(blocks.removed(chain, tier="ram"))
    assert len(gone) == 3
    assert everything(held_after(*events, *gone)) == {}


def test_a_reset_stands_in_front_of_its_events() -> None:
    reset = KvEvent(reset=KvReset())
    assert blocks.told(Batch(3, [stored(1)], reset=True)) == [reset, stored(1)]
    assert blocks.told(Batch(3, [stored(1)])) == [stored(1)]
    assert everything(held_after(stored(2), reset, stored(1))) == {("ram", b""): {name(1): b""}}


def test_every_event_takes_room() -> None:
    held = HeldBlocks()
    assert [held.size_of(event) for event in (stored(1, 7), removed(1, 2), blocks.cleared(tier="ram"))] == [7, 2, 1]


@given(seed=st.integers(0, 2**32))
def test_a_snapshot_leaves_behind_what_all_events_did(seed: int) -> None:
    random = Random(seed)
    held = held_after(*(some_event(random) for _ in range(40)))
    assert everything(held_after(*held.snapshot())) == everything(held)
