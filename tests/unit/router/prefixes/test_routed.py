"""What was just routed is known for a while, and takes no more than its room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir.kvstore.v1.block_hash import join_hashes
from weir_router.prefixes.routed import RoutedPrefixes


def chain(tokens: str) -> list[bytes]:
    """One block a letter; a hash stands for all letters up to its own."""
    return [tokens[: i + 1].encode().ljust(16, b"\0") for i in range(len(tokens))]


def note(routed: RoutedPrefixes, address: str, tokens: str, now: float = 0.0) -> None:
    routed.note(address, join_hashes(chain(tokens)), now)


def test_a_prompt_that_begins_like_one_just_routed_is_expected_there() -> None:
    routed = RoutedPrefixes()
    note(routed, "a", "abcd")
    note(routed, "b", "abxyz")
    assert dict(routed.leading_blocks(chain("abcq"), 1.0)) == {"a": 3, "b": 2}
    assert dict(routed.leading_blocks(chain("abcdefg"), 1.0)) == {"a": 4, "b": 2}
    assert not dict(routed.leading_blocks(chain("x"), 1.0))
    assert not dict(routed.leading_blocks([], 1.0))
    note(routed, "a", "")
    note(routed, "a", "aq")
    assert dict(routed.leading_blocks(chain("abcd"), 1.0)) == {"a": 1, "b": 2}, "the newest counts"


def test_it_is_believed_for_a_while_and_lost_with_its_executor() -> None:
    routed = RoutedPrefixes(lifetime_seconds=10.0)
    note(routed, "a", "abcd", now=0.0)
    note(routed, "b", "abcd", now=5.0)
    assert dict(routed.leading_blocks(chain("abcd"), 9.9)) == {"a": 4, "b": 4}
    assert dict(routed.leading_blocks(chain("abcd"), 10.0)) == {"b": 4}
    note(routed, "c", "q", now=12.0)
    assert routed.size_bytes == 16 * 5, "what is over has left"
    routed.lost("b")
    assert not dict(routed.leading_blocks(chain("abcd"), 12.0))


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.text("ab", max_size=8), st.integers(0, 3)), max_size=60))
def test_it_never_takes_more_than_its_room_and_what_is_left_is_right(notes: list[tuple[str, str, int]]) -> None:
    routed, newest, now = RoutedPrefixes(lifetime_seconds=5.0, max_bytes=16 * 12), dict[tuple[str, str], str](), 0.0
    for address, tokens, pause in notes:
        now += pause
        note(routed, address, tokens, now)
        if tokens:
            newest[address, tokens[0]] = tokens
        assert routed.size_bytes <= 16 * 12
        for first in "ab":
            for found, count in routed.leading_blocks(chain(first + "abab"), now):
                common = 0
                for ours, theirs in zip(first + "abab", newest[found, first], strict=False):
                    if ours != theirs:
                        break
                    common += 1
                assert count == common
