"""What of a prompt was loaded from which tier."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_executor.kv_transfer.plan import Source, TierRange
from weir_executor.step_output import RequestEnd

_TIERS = ("ram", "disk", "redis")


def end(cached: int, loaded: int) -> RequestEnd:
    return RequestEnd(1, 1000, cached, loaded, 0)


def test_tokens_are_counted_where_their_blocks_were() -> None:
    source = Source(2, [TierRange(3, "ram"), TierRange(4, "disk")], block_size=16)
    assert source.tokens_by_tier(end(2 * 16, 7 * 16)) == {"ram": 48, "disk": 64}


def test_what_the_engine_had_itself_by_then_was_not_loaded() -> None:
    """Another request with the same beginning was quicker."""
    source = Source(0, [TierRange(3, "ram"), TierRange(4, "disk")], block_size=16)
    assert source.tokens_by_tier(end(4 * 16, 2 * 16)) == {"disk": 32}
    assert source.tokens_by_tier(end(7 * 16, 0)) == {}


def test_of_what_a_store_does_not_say_nothing_is_said() -> None:
    source = Source(0, [TierRange(1, "ram"), TierRange(2, "")], block_size=16)
    assert source.tokens_by_tier(end(0, 48)) == {"ram": 16}


@given(
    ranges=st.lists(st.builds(TierRange, st.integers(0, 9), st.sampled_from(_TIERS)), max_size=6),
    first=st.integers(0, 9),
    known=st.integers(0, 60),
    taken=st.integers(0, 60),
    block_size=st.sampled_from([1, 16, 64]),
)
def test_each_block_counts_once(ranges: list[TierRange], first: int, known: int, taken: int, block_size: int) -> None:
    """An oracle that looks at each block by itself."""
    places = [each.tier for each in ranges for _ in range(each.blocks)]
    expected = dict[str, int]()
    for number, tier in enumerate(places, start=first):
        if known <= number < known + taken:
            expected[tier] = expected.get(tier, 0) + block_size
    told = Source(first, ranges, block_size).tokens_by_tier(end(known * block_size, taken * block_size))
    assert told == expected
