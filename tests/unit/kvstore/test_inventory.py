from __future__ import annotations

from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from unit.kvstore.making import name
from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.kv_events import blocks
from weir_chassis.kv_events.blocks import HeldBlocks
from weir_chassis.kv_events.wire import Source
from weir_kvstore.inventory import Inventory, SourceReport

ONE, OTHER = Source("executor", "one:1"), Source("executor", "other:1")


def stored(numbers: Sequence[int], tier: str = "device") -> list[KvEvent]:
    return list(blocks.stored([name(number) for number in numbers], b"", tier=tier))


def removed(numbers: Sequence[int], tier: str = "device") -> list[KvEvent]:
    return list(blocks.removed([name(number) for number in numbers], tier=tier))


def test_sources_are_counted_by_themselves_and_in_all() -> None:
    totals: list[int] = []
    inventory = Inventory(totals.append)
    for source in (OTHER, ONE):
        inventory.reset(source)
        inventory.apply(source, stored([1, 2, 3]))
    inventory.apply(ONE, removed([2]))
    assert totals[-1] == 5
    assert inventory.reports({ONE: 1.5, OTHER: 0.5}) == [SourceReport("one:1", 2, 1.5), SourceReport("other:1", 3, 0.5)]


def test_a_reset_voids_and_a_lost_source_is_gone() -> None:
    totals: list[int] = []
    inventory = Inventory(totals.append)
    inventory.reset(ONE)
    inventory.apply(ONE, stored([1, 2, 3]))
    inventory.reset(ONE)
    inventory.apply(ONE, stored([7]))
    assert inventory.reports({}) == [SourceReport("one:1", 1, 0.0)]
    inventory.lost(ONE)
    inventory.lost(OTHER)
    assert (inventory.reports({}), totals[-1]) == ([], 0)


@given(seed=st.integers(0, 2**32))
def test_it_counts_what_a_faithful_source_holds(seed: int) -> None:
    random, inventory, truth = Random(seed), Inventory(), HeldBlocks()
    inventory.reset(ONE)
    for _ in range(40):
        tier = random.choice(["device", "host"])
        held = {int.from_bytes(block_hash) for block_hash in truth.parents(tier)}
        new = random.sample(sorted(set(range(30)) - held), 2)
        gone = random.sample(sorted(held), min(2, len(held)))
        events = random.choice([stored(new, tier), removed(gone, tier), [blocks.cleared(tier=tier)]])
        for event in events:
            truth.apply(event)
        inventory.apply(ONE, events)
        assert inventory.reports({})[0].blocks == len(truth)
