from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unit.executor.trtllm.connector.making import HASHES
from weir_executor.trtllm.connector.names import StagedName, furthest, parse

NUMBERS = st.integers(0, 1 << 40)


@given(st.binary(min_size=16, max_size=16), NUMBERS, NUMBERS, NUMBERS)
def test_a_name_says_what_it_names(last_hash: bytes, first: int, end: int, number: int) -> None:
    name = StagedName(last_hash, first, end, number)
    assert parse(str(name)) == name


@given(st.text())
def test_other_names_are_none(name: str) -> None:
    found = parse(name)
    assert found is None or str(found) == name or name != str(found)
    assert parse("writing-7") is None
    assert parse(f"{'0' * 31}g-0-1-2") is None


def staged(first: int, end: int, number: int = 0) -> StagedName:
    return StagedName(HASHES[end - 1], first, end, number)


def test_the_one_that_reaches_furthest_and_goes_on_from_what_is_computed() -> None:
    all_of_them = [staged(0, 2), staged(1, 4), staged(3, 5)]
    for computed, best in ((0, (0, 2)), (1, (1, 4)), (2, (1, 4)), (3, (3, 5)), (4, (3, 5))):
        found = furthest(all_of_them, HASHES, computed_blocks=computed, max_blocks=5)
        assert found is not None
        assert (found.first_block, found.end_block) == best
    assert furthest(all_of_them, HASHES, computed_blocks=5, max_blocks=5) is None


def test_nothing_beyond_what_may_be_given_and_nothing_of_another_prompt() -> None:
    assert furthest([staged(0, 5)], HASHES, computed_blocks=4, max_blocks=4) is None
    assert furthest([staged(0, 5)], HASHES, computed_blocks=3, max_blocks=4) == staged(0, 5)
    assert furthest([staged(0, 5)], HASHES[:4], computed_blocks=0, max_blocks=4) is None
    other = StagedName(bytes(16), 0, 3, 0)
    assert furthest([other], HASHES, computed_blocks=0, max_blocks=5) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5))), st.integers(0, 5), st.integers(0, 5))
def test_what_is_found_serves_the_prompt(ranges: list[tuple[int, int]], computed: int, most: int) -> None:
    names = [staged(first, end, i) for i, (first, end) in enumerate(ranges) if first < end]
    serves = [n for n in names if n.first_block <= computed < min(n.end_block, most)]
    found = furthest(names, HASHES, computed_blocks=computed, max_blocks=most)
    assert (found is None) == (not serves)
    assert found is None or found.end_block == max(n.end_block for n in serves)
