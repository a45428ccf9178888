from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.kvstore import policy_contract as contract
from unit.kvstore.policy_models import FifoModel, LfuModel, LruModel, S3FifoModel
from weir_kvstore.policies.lfu import HALF_LIFE_USES, Lfu
from weir_kvstore.policies.make import POLICIES, PolicyName, make_policy
from weir_kvstore.policies.s3fifo import S3Fifo

MODELS: Mapping[PolicyName, Callable[[], contract.Model]] = {
    "lru": LruModel,
    "lfu": LfuModel,
    "fifo": FifoModel,
    "s3fifo": S3FifoModel,
}
every_policy = pytest.mark.parametrize("name", list(POLICIES))


@every_policy
@given(steps=contract.STEPS)
def test_it_does_what_its_model_does(name: PolicyName, steps: list[contract.Step]) -> None:
    contract.Tier(make_policy(name), MODELS[name]()).run(steps)


@every_policy
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), rounds=st.integers(0, 5), strangers=st.integers(0, 30)
)
def test_a_chain_goes_from_its_end(name: PolicyName, lengths: list[int], rounds: int, strangers: int) -> None:
    contract.check_chain_goes_from_its_end(POLICIES[name], lengths, rounds, strangers)


@every_policy
def test_a_grown_chain_keeps_its_beginning(name: PolicyName) -> None:
    contract.check_new_block_outlives_no_parent(POLICIES[name])
    contract.check_renewed_while_leased(POLICIES[name])
    contract.check_unknown_is_not_renewed(POLICIES[name])


@pytest.mark.parametrize(("name", "goes"), [("lru", 1), ("lfu", 1), ("fifo", 0), ("s3fifo", 1)])
def test_what_a_use_is_worth(name: PolicyName, goes: int) -> None:
    policy = make_policy(name)
    for block_id in (0, 1):
        policy.add(block_id, bytes([block_id]), 10)
    for _ in range(2):
        policy.remove(0)
        policy.add(0, b"\0", 10)  # a lease is a use, and comes back to its place
    assert policy.victims(size_bytes=1, blocks=0) == [goes]


def test_lfu_lets_old_favourites_go() -> None:
    policy = Lfu()
    for block_id in range(11):
        policy.add(block_id, bytes([block_id]), 10)
    for _ in range(63):
        policy.touch(0)
    rounds = 0
    while policy.victims(size_bytes=1, blocks=0) != [0]:
        rounds += 1
        for block_id in range(1, 11):
            policy.touch(block_id)
    assert HALF_LIFE_USES < rounds < 3 * HALF_LIFE_USES  # the others' uses fade as well, and come to a dozen at most


def test_lfu_knows_a_favourite_again_that_was_evicted() -> None:
    policy = Lfu()
    for _ in range(5):
        policy.add(0, b"favourite", 10)
        policy.remove(0)
    policy.add(1, b"other", 10)
    policy.add(2, b"favourite", 10)  # computed anew: another block
    policy.add(3, b"third", 10)
    policy.touch(1)
    assert policy.victims(size_bytes=0, blocks=3) == [3, 1, 2]


def test_s3fifo_keeps_what_is_used_through_a_scan() -> None:
    policy = S3Fifo()
    hot = range(10)
    for block_id in hot:
        policy.add(block_id, b"hot%d" % block_id, 10)
        policy.touch(block_id)
        policy.touch(block_id)
    for scanned in range(100, 400):
        policy.add(scanned, b"scan%d" % scanned, 10)
        while policy.size_bytes > 200:
            victims = policy.victims(size_bytes=policy.size_bytes - 200, blocks=0)
            assert victims is not None
            for victim in victims:
                policy.remove(victim)
    assert all(block_id in policy for block_id in hot)


def test_s3fifo_takes_a_ghost_into_main() -> None:
    policy = S3Fifo()
    for block_id in range(10):
        policy.add(block_id, bytes([block_id]), 10)
    for block_id in policy.victims(size_bytes=20, blocks=0) or ():
        policy.remove(block_id)
    policy.add(20, b"\0", 10)  # the address that has just gone
    policy.add(21, b"new", 10)
    assert contract.evict_all(policy)[-1] == 20


def test_s3fifo_remembers_no_more_than_it_holds() -> None:
    policy = S3Fifo()
    for block_id in range(1000):
        policy.add(block_id, b"%d" % block_id, 1)
        if len(policy) > 10:
            for victim in policy.victims(size_bytes=0, blocks=1) or ():
                policy.remove(victim)
    assert len(policy._ghosts) <= 11
