from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unit.kvstore.making import address, record
from weir_kvstore.block import Block
from weir_kvstore.record import Address
from weir_kvstore.short_prefixes import too_short


def chain(*numbers: int, parent: int | None = None) -> list[Block]:
    parents = [parent, *numbers]
    return [Block(n, record(n, parent=before), "ram") for n, before in zip(numbers, parents, strict=False)]


def names(blocks: list[Block]) -> list[int]:
    return sorted(block.block_id for block in blocks)


def nobody(_: Address) -> bool:
    return False


def test_a_chain_is_kept_or_not_as_a_whole() -> None:
    assert too_short(chain(1, 2, 3), 3, nobody) == []
    assert names(too_short(chain(1, 2), 3, nobody)) == [1, 2]
    assert names(too_short([*chain(1, 2, 3), *chain(11, 12)], 3, nobody)) == [11, 12]


def test_a_branch_of_a_long_chain_is_kept() -> None:
    assert too_short([*chain(1, 2, 3), *chain(9, parent=1)], 3, nobody) == []


def test_what_continues_a_held_chain_is_kept() -> None:
    assert too_short(chain(5, parent=4), 3, lambda one: one == address(4)) == []
    assert names(too_short(chain(5, parent=4), 3, nobody)) == [5]


def test_no_bound_keeps_all() -> None:
    assert too_short(chain(1), 0, nobody) == too_short(chain(1), 1, nobody) == []


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), max_size=12), st.integers(2, 5))
def test_any_parents_end(links: list[tuple[int, int]], min_blocks: int) -> None:
    """Chains that bite their tails too: every block is judged, and none twice."""
    blocks = [Block(n, record(number, parent=parent), "ram") for n, (number, parent) in enumerate(links)]
    found = too_short(blocks, min_blocks, nobody)
    assert len({block.block_id for block in found}) == len(found) <= len(blocks)
