"""What executors hold is what their events have left behind, and a prompt's part of it is found by halving."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.kv_events import blocks
from weir_chassis.kv_events.wire import Source
from weir_router.prefixes.index import PrefixIndex

A, B = Source("executor", "a:1"), Source("executor", "b:1")


def name(number: int) -> bytes:
    return number.to_bytes(16, "little")


def chain(first: int, count: int) -> list[bytes]:
    return [name(i) for i in range(first, first + count)]


def stored(hashes: Sequence[bytes], parent: bytes = b"", tier: str = "device") -> list[KvEvent]:
    return list(blocks.stored(hashes, parent, tier=tier))


def removed(hashes: Sequence[bytes], tier: str = "device") -> list[KvEvent]:
    return list(blocks.removed(hashes, tier=tier))


def known(*sources: Source, max_blocks: int = 1000) -> PrefixIndex:
    index = PrefixIndex(max_blocks)
    for source in sources:
        index.reset(source)
    return index


def test_each_executor_holds_what_it_has_told() -> None:
    index, prompt = known(A, B), chain(0, 10)
    index.apply(A, stored(prompt[:7]))
    index.apply(B, stored(prompt[:3]))
    assert index.leading_blocks(prompt) == {"a:1": 7, "b:1": 3}
    assert index.leading_blocks(chain(100, 5)) == {"a:1": 0, "b:1": 0}
    assert index.leading_blocks([]) == {"a:1": 0, "b:1": 0}
    index.apply(A, removed(prompt[5:7]))
    assert index.leading_blocks(prompt)["a:1"] == 5


def test_a_reset_voids_and_who_is_lost_is_unknown() -> None:
    seen: list[tuple[int, int]] = []
    index = PrefixIndex(1000, lambda executors, held: seen.append((executors, held)))
    index.reset(A)
    index.apply(A, stored(chain(0, 5)))
    index.reset(A)
    assert index.leading_blocks(chain(0, 5)) == {"a:1": 0}
    index.apply(A, stored(chain(0, 2)))
    index.lost(A)
    index.lost(B)
    assert not index.executors
    assert seen == [(1, 0), (1, 5), (1, 0), (1, 2), (0, 0), (0, 0)]


def test_tiers_together_make_a_prefix_and_one_of_them_is_cleared() -> None:
    index, prompt = known(A), chain(0, 6)
    index.apply(A, stored(prompt[:2]))
    index.apply(A, stored(prompt[2:5], prompt[1], tier="host"))
    assert index.leading_blocks(prompt) == {"a:1": 5}
    index.apply(A, [blocks.cleared(tier="host")])
    assert index.leading_blocks(prompt) == {"a:1": 2}
    index.apply(A, removed(prompt[:1], tier="host"))
    index.apply(A, removed(prompt))
    assert index.leading_blocks(prompt) == {"a:1": 0}


def test_what_does_not_fit_is_not_known_and_neither_is_what_follows_on_it() -> None:
    index, prompt = known(A, B, max_blocks=8), chain(0, 12)
    index.apply(A, stored(prompt[:6]))
    index.apply(A, stored(prompt[6:12], prompt[5]))
    assert index.leading_blocks(prompt)["a:1"] == 8
    index.apply(A, removed(prompt[4:8]))
    more = chain(100, 2)
    index.apply(A, stored(more, prompt[11]))
    assert index.leading_blocks([*prompt, *more])["a:1"] == 4, "a tail without its middle is no prefix"
    index.apply(A, stored(prompt[4:6], prompt[3]))
    index.apply(A, stored(chain(200, 1)))
    assert index.leading_blocks(prompt)["a:1"] == 6
    assert index.leading_blocks(chain(200, 2))["a:1"] == 1, "what begins a prompt needs no parent"
    index.apply(B, stored(prompt[:8]))
    assert index.leading_blocks(prompt)["b:1"] == 8, "each executor has room of its own"


def test_events_of_somebody_unknown_are_our_own_mistake() -> None:
    with pytest.raises(KeyError):
        known(A).apply(B, stored(chain(0, 1)))


steps = st.lists(
    st.tuples(st.sampled_from(["store", "evict", "reset", "lose"]), st.integers(0, 2), st.integers(0, 12)), max_size=40
)


@given(steps, st.integers(0, 2), st.integers(0, 14))
def test_the_index_is_what_an_engine_that_evicts_from_the_end_holds(
    history: list[tuple[str, int, int]], asked: int, length: int
) -> None:
    """The oracle: for each of three prompts that share no block, how many of its blocks are held."""
    index, held = known(A), [0, 0, 0]
    for step, prompt, count in history:
        hashes = chain(100 * prompt, 14)
        if step == "store" and count > held[prompt]:
            index.apply(A, stored(hashes[held[prompt] : count], hashes[held[prompt] - 1] if held[prompt] else b""))
            held[prompt] = count
        elif step == "evict" and count < held[prompt]:
            index.apply(A, removed(hashes[count : held[prompt]]))
            held[prompt] = count
        elif step in ("reset", "lose"):
            if step == "lose":
                index.lost(A)
            index.reset(A)
            held = [0, 0, 0]
    assert index.leading_blocks(chain(100 * asked, length)) == {"a:1": min(length, held[asked])}
