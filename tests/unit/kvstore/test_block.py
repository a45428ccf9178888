from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unit.kvstore.making import record
from weir_kvstore.block import Block, State, parents_first


def blocks_of(parents: list[tuple[int, int | None]]) -> list[Block]:
    """(number, its parent's number) for each."""
    return [
        Block(block_id, record(number, parent=parent), "ram") for block_id, (number, parent) in enumerate(parents, 1)
    ]


def numbers(blocks: list[Block]) -> list[int]:
    return [int.from_bytes(block.address.block_hash, "big") for block in blocks]


def test_what_a_block_says_of_itself_is_its_records() -> None:
    block = Block(1, record(7, 20, parent=6, tenant="acme"), "ram")
    assert (block.address, block.size_bytes, block.tenant) == (block.record.address, 20, "acme")
    assert (block.checksum, block.parent_block_hash) == (block.record.checksum, block.record.parent_block_hash)
    assert (block.state, block.references) == (State.RESERVED, 0)


def test_a_chain_that_came_backwards() -> None:
    assert numbers(parents_first(blocks_of([(3, 2), (2, 1), (1, None), (9, 8)]))) == [1, 2, 3, 9]


def test_a_second_copy_of_an_address_comes_last() -> None:
    blocks = blocks_of([(1, None), (2, 1), (1, None)])
    assert [block.block_id for block in parents_first(blocks)] == [1, 2, 3]


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), max_size=12))
def test_all_of_them_once_and_each_after_its_parent_where_that_can_be(links: list[tuple[int, int]]) -> None:
    """Chains may bite their tails, and addresses may come twice."""
    blocks = blocks_of(list(links))
    ordered = parents_first(blocks)
    assert sorted(block.block_id for block in ordered) == [block.block_id for block in blocks]
    first_of: dict[int, int] = {}
    for number, parent in links:
        first_of.setdefault(number, parent)
    if len(first_of) == len(links) and not _bites(first_of):
        place = {number: n for n, number in enumerate(numbers(ordered))}
        assert all(place[parent] < place[number] for number, parent in links if parent in place)


def _bites(parent_of: dict[int, int]) -> bool:
    for start in parent_of:
        here, steps = start, 0
        while here in parent_of:
            here, steps = parent_of[here], steps + 1
            if steps > len(parent_of):
                return True
    return False
