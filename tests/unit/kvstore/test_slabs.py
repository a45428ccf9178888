"""Slabs never overlap, and whatever is given back can be taken again."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_kvstore.tiers.slabs import Slabs, arena_bytes, slab_bytes

KIB = 1024
MIB = KIB * KIB


@pytest.mark.parametrize(
    ("payload", "slab"),
    [(1, 64), (64, 64), (65, 128), (64 * KIB - 1, 64 * KIB), (64 * KIB + 1, 68 * KIB), (368 * KIB, 368 * KIB)],
)
def test_a_slab_is_a_little_longer_than_its_payload(payload: int, slab: int) -> None:
    assert slab_bytes(payload) == slab


@pytest.mark.parametrize("size", [1000, 48 * KIB, 368 * KIB, 2 * MIB + 5])
def test_an_arena_holds_its_capacity_in_blocks_of_one_size(size: int) -> None:
    capacity = 64 * MIB
    slabs = Slabs(arena_bytes(capacity))
    assert all(slabs.take(size) is not None for _ in range(capacity // size))


def test_a_freed_slab_is_taken_by_the_next_of_its_size() -> None:
    slabs = Slabs(100 * KIB)
    offsets = [slabs.take(KIB) for _ in range(5)]
    assert offsets == [0, KIB, 2 * KIB, 3 * KIB, 4 * KIB]
    slabs.give(KIB, KIB)
    slabs.give(3 * KIB, KIB)
    assert slabs.take(2 * KIB) == 5 * KIB  # no gap is long enough
    assert {slabs.take(KIB), slabs.take(KIB)} == {KIB, 3 * KIB}


def test_free_neighbours_become_one() -> None:
    slabs = Slabs(4 * KIB)
    offsets = [slabs.take(KIB) for _ in range(4)]
    assert slabs.take(64) is None
    for offset in (offsets[0], offsets[2], offsets[1]):  # no neighbour, no neighbour, both
        assert offset is not None
        slabs.give(offset, KIB)
        slabs.check_integrity()
    assert slabs.take(3 * KIB) == 0


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 200 * KIB), min_size=1, max_size=4))
def test_whatever_happens_slabs_do_not_overlap(seed: int, sizes: list[int]) -> None:
    random, total = Random(seed), 2 * MIB
    slabs, held = Slabs(total), dict[int, int]()
    for _ in range(200):
        if held and random.random() < 0.45:
            offset = random.choice(list(held))
            slabs.give(offset, held.pop(offset))
        else:
            size = random.choice(sizes)
            taken = slabs.take(size)
            if taken is not None:
                assert taken not in held
                held[taken] = size
    slabs.check_integrity()
    ends = 0
    for offset, size in sorted(held.items()):
        assert offset >= ends
        assert offset % 64 == 0
        ends = offset + slab_bytes(size)
    assert ends <= total
    assert slabs.free_bytes == total - sum(map(slab_bytes, held.values()))
    for offset, size in held.items():
        slabs.give(offset, size)
    assert slabs.take(total) == 0
