from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.kvstore.making import name
from weir_kvstore.policies.make import POLICIES, PolicyName
from weir_kvstore.replay.replay import Result, distinct_blocks, replay, replay_all
from weir_kvstore.replay.synthetic import SYNTHETIC
from weir_kvstore.replay.table import table
from weir_kvstore.replay.trace import Lookup


def lookups(*chains: Sequence[int]) -> list[Lookup]:
    return [Lookup(float(time), b"".join(map(name, chain))) for time, chain in enumerate(chains)]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_put_is_hit(policy: PolicyName) -> None:
    result = replay(lookups([1, 2, 3], [1, 2, 4], [9], [1, 2, 3]), policy, capacity=10)
    assert (result.lookups, result.hits, result.evicted) == (10, 5, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_only_a_beginning_is_hit(policy: PolicyName) -> None:
    """The end of a chain is held by another that begins otherwise; it is put once all the same."""
    result = replay(lookups([1, 2], [3, 2], [3, 2]), policy, capacity=10)
    assert (result.hits, result.evicted) == (2, 0)


def test_lru_is_what_can_be_told_by_hand() -> None:
    trace = lookups([1], [2], [1], [3], [1], [2])
    assert replay(trace, "lru", capacity=2).hits == 2  # 3 pushes 2 out
    assert replay(trace, "lru", capacity=3).hits == 3
    assert replay(trace, "lru", capacity=1) == Result("lru", 1, 6, 0, 5)


@given(
    st.lists(st.lists(st.integers(0, 8), max_size=5, unique=True), max_size=20),
    st.integers(1, 12),
    st.sampled_from(list(POLICIES)),
)
def test_no_policy_beats_a_store_that_never_evicts(chains: list[list[int]], capacity: int, policy: PolicyName) -> None:
    trace = lookups(*chains)
    held: set[int] = set()
    most = 0
    for chain in chains:
        most += len(list(takewhile(held.__contains__, chain)))
        held |= set(chain)
    result = replay(trace, policy, capacity)
    assert result.lookups == sum(map(len, chains))
    assert result.hits <= most
    assert replay(trace, policy, capacity=len(held) + 1).hits == most
    assert distinct_blocks(trace) == len(held)


@pytest.mark.parametrize("kind", SYNTHETIC)
def test_the_same_seed_makes_the_same_trace(kind: str) -> None:
    make = SYNTHETIC[kind]
    trace = list(make(7, 50))
    assert trace == list(make(7, 50)) != list(make(8, 50))
    assert len(trace) == 50
    assert [one.time for one in trace] == sorted(one.time for one in trace)
    assert all(one.tokens == 16 * len(one.chain) > 0 for one in trace)
    chains = {one.chain[0] for one in trace}
    assert len(chains) < len(trace), "somebody comes back"


def test_a_scan_does_not_push_out_what_s3fifo_and_lfu_keep() -> None:
    trace = list(SYNTHETIC["scan"](0, 600))
    capacity = distinct_blocks(trace) // 10
    hits = {result.policy: result.hits for result in replay_all(trace, [capacity])}
    assert hits["s3fifo"] > hits["lru"]
    assert hits["lfu"] > hits["lru"]


def test_conversations_are_what_lru_is_good_at() -> None:
    trace = list(SYNTHETIC["conversations"](0, 1000))
    capacity = distinct_blocks(trace) // 4
    hits = {result.policy: result.hits for result in replay_all(trace, [capacity], ["lru", "lfu"])}
    assert hits["lru"] > hits["lfu"]


def test_the_best_of_a_column_has_a_star() -> None:
    results = [
        Result("lru", 10, 8, 2, 0),
        Result("lfu", 10, 8, 4, 0),
        Result("lru", 20, 8, 4, 0),
        Result("lfu", 20, 8, 4, 0),
    ]
    assert table(results).splitlines() == [
        "policy            10          20",
        "lru           25.0%       50.0%*",
        "lfu           50.0%*      50.0%*",
    ]


def test_a_chain_that_bites_its_tail_is_put_once() -> None:
    """No store makes one; a trace from elsewhere may."""
    assert replay(lookups([1, 1, 1], [1]), "lru", capacity=10).hits == 1
