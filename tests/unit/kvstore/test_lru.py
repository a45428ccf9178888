from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_kvstore.policies.lru import Lru


def of(*sizes: int) -> Lru:
    order = Lru()
    for block_id, size_bytes in enumerate(sizes):
        order.add(block_id, b"", size_bytes)
    return order


def test_the_least_recently_used_goes_first() -> None:
    order = of(10, 10, 10)
    order.touch(0)
    assert order.victims(size_bytes=11, blocks=0) == [1, 2]


def test_no_more_than_needed_go() -> None:
    order = of(10, 10, 10)
    assert order.victims(size_bytes=0, blocks=0) == []
    assert order.victims(size_bytes=-5, blocks=-1) == []
    assert order.victims(size_bytes=10, blocks=0) == [0]
    assert order.victims(size_bytes=1, blocks=2) == [0, 1]


def test_nobody_goes_in_vain() -> None:
    assert of(10, 10).victims(size_bytes=21, blocks=0) is None
    assert of(10, 10).victims(size_bytes=1, blocks=3) is None


def test_what_may_not_go_is_passed_over() -> None:
    order = of(10, 10)
    order.remove(0)
    assert order.victims(size_bytes=1, blocks=0) == [1]
    assert (len(order), 0 in order) == (1, False)
    order.add(0, b"", 10)  # coming back is being used
    assert order.victims(size_bytes=20, blocks=0) == [1, 0]


@given(st.lists(st.integers(1, 50)), st.integers(0, 400), st.integers(0, 12))
def test_victims_are_the_shortest_sufficient_beginning(sizes: list[int], size_bytes: int, blocks: int) -> None:
    order = of(*sizes)
    order.check_integrity()
    victims = order.victims(size_bytes=size_bytes, blocks=blocks)
    enough = [n for n in range(len(sizes) + 1) if sum(sizes[:n]) >= size_bytes and n >= blocks]
    assert victims == (list(range(enough[0])) if enough else None)
