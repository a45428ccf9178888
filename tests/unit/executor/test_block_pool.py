"""The block pool under every order of operations that hypothesis can think of, beside a plain model of it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from weir_executor.paged.block_pool import BlockPool
from weir_executor.step_output import BlockRemoved, BlockStored

_NUM_BLOCKS = 6


class PoolMachine(RuleBasedStateMachine):
    """Owners take, share, store and give back; the model is a list of owned blocks and what each is known to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.now = BlockPool(_NUM_BLOCKS, ttl_seconds=3.0), 0.0
        self.held: list[list[int]] = []
        self.findable: dict[bytes, int] = {}

    @rule(count=st.integers(1, _NUM_BLOCKS))
    def allocate(self, count: int) -> None:
        if count <= self.pool.num_free:
            blocks = self.pool.allocate(count)
            assert not set(blocks) & {block for owner in self.held for block in owner}, "handed out what has an owner"
            self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), number=st.integers(0, 9))
    def store(self, data: st.DataObject, number: int) -> None:
        block = data.draw(st.sampled_from([block for owner in self.held for block in owner]))
        if not self.pool.is_findable(block):
            self.pool.store(block, bytes([number]), b"")

    @rule(number=st.integers(0, 9))
    def share(self, number: int) -> None:
        found = self.pool.match([bytes([number])])
        assert (bytes([number]) in self.findable) == bool(found)
        if found:
            assert found == [self.findable[bytes([number])]]
            self.pool.share(found)
            self.held.append(found)

    @rule(seconds=st.integers(0, 4))
    def wait(self, seconds: int) -> None:
        owned = {block for owner in self.held for block in owner if self.pool.is_findable(block)}
        self.now += seconds
        self.pool.expire(self.now)
        assert all(self.pool.is_findable(block) for block in owned), "what is used stays"
        assert seconds < 3 or not self.pool.num_cached

    @invariant()
    def events_tell_what_is_findable(self) -> None:
        for event in self.pool.take_events():
            if isinstance(event, BlockStored):
                for block_hash in event.block_hashes:
                    assert block_hash not in self.findable
                    (self.findable[block_hash],) = self.pool.match([block_hash])
            elif isinstance(event, BlockRemoved):
                for block_hash in event.block_hashes:
                    del self.findable[block_hash]
        assert all(self.pool.match([block_hash]) == [block] for block_hash, block in self.findable.items())

    @invariant()
    def every_block_is_counted_once(self) -> None:
        self.pool.check_integrity()
        owners = Counter(block for owner in self.held for block in owner)
        assert [self.pool.references(block) for block in range(_NUM_BLOCKS)] == [owners[b] for b in range(_NUM_BLOCKS)]
        assert self.pool.num_free == _NUM_BLOCKS - len(owners)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40)


def test_cached_blocks_go_least_recently_used_first_and_ends_before_beginnings() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    for block, name in zip(first + second, (b"a", b"b", b"c", b"d"), strict=True):
        pool.store(block, name, b"")
    pool.release(first)
    pool.release(second)
    pool.take_events()
    pool.share(pool.match([b"a"]))
    pool.release(first[:1])
    pool.allocate(3)
    assert pool.take_events() == [BlockRemoved((b"b", b"d", b"c"))]
    assert pool.match([b"a"]) == first[:1]


def test_what_nobody_uses_is_forgotten_after_its_time() -> None:
    pool = BlockPool(4, ttl_seconds=10.0)
    blocks = pool.allocate(2)
    for block, name in zip(blocks, (b"a", b"b"), strict=True):
        pool.store(block, name, b"")
    pool.expire(100.0)
    seconds = pool.seconds_to_expiry
    assert seconds is None, "all of them are used"
    pool.release(blocks)
    pool.take_events()
    pool.expire(105.0)
    pool.share(pool.match([b"a"]))
    pool.release(blocks[:1])
    assert pool.seconds_to_expiry == 5.0
    pool.expire(110.0)
    assert pool.match([b"a", b"b"]) == blocks[:1]
    assert pool.take_events() == [BlockRemoved((b"b",))]
    assert (pool.num_cached, pool.num_free, pool.seconds_to_expiry) == (1, 4, 5.0)
    pool.expire(115.0)
    assert (pool.num_cached, pool.num_free) == (0, 4)
    pool.check_integrity()


def test_without_a_lifetime_nothing_is_forgotten() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.store(blocks[0], b"a", b"")
    pool.release(blocks)
    pool.expire(1e9)
    assert (pool.match([b"a"]), pool.seconds_to_expiry) == (blocks, None)


def test_empty_blocks_are_used_before_cached_ones() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.store(block, b"a", b"")
    pool.release([block])
    pool.allocate(2)
    assert pool.match([b"a"]) == [block]


def test_a_match_ends_at_the_first_gap() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    pool.store(blocks[0], b"a", b"")
    pool.store(blocks[2], b"c", b"b")
    assert pool.match([b"a", b"b", b"c"]) == blocks[:1]


def test_the_same_content_is_known_under_one_id() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    assert pool.store(first, b"a", b"")
    assert not pool.store(second, b"a", b"")
    pool.release([second])
    assert pool.num_cached == 0


def test_a_chain_is_one_event() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(4)
    for block, name, parent in zip(blocks, (b"a", b"b", b"c", b"x"), (b"", b"a", b"b", b""), strict=True):
        pool.store(block, name, parent)
    assert pool.take_events() == [BlockStored((b"a", b"b", b"c"), b""), BlockStored((b"x",), b"")]


def test_without_prefix_cache_nothing_is_findable() -> None:
    pool = BlockPool(2, prefix_cache=False)
    (block,) = pool.allocate(1)
    assert not pool.store(block, b"a", b"")
    assert pool.match([b"a"]) == []
    assert pool.take_events() == []


@pytest.mark.parametrize("wrong", ["allocate", "release"])
def test_our_own_mistakes_are_asserted(wrong: str) -> None:
    pool = BlockPool(2)
    with pytest.raises(AssertionError):
        pool.allocate(3) if wrong == "allocate" else pool.release([0])
