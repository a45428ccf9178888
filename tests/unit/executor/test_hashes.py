"""Memories of hashes are bounded and forget the oldest first."""

from __future__ import annotations

from weir_executor.engine import FullBlock
from weir_executor.kv_transfer.hashes import RecentHashes, ScopeIndex


def name(i: int) -> bytes:
    return i.to_bytes(16, "little")


def test_the_oldest_is_forgotten_first() -> None:
    recent = RecentHashes(capacity=3)
    recent.add([name(1), name(2), name(3)])
    recent.add([name(1), name(4)])
    assert [name(i) in recent for i in range(1, 5)] == [True, False, True, True]
    assert len(recent) == 3
    recent.discard([name(1), name(9)])
    assert name(1) not in recent


def test_a_block_belongs_to_the_scope_of_its_prompt_or_its_parent() -> None:
    index = ScopeIndex(capacity=10)
    index.note(b"scope", [name(1), name(2)])
    assert index.scope_of(FullBlock(name(2), name(1), b"")) == b"scope"
    assert index.scope_of(FullBlock(name(3), name(2), b"")) == b"scope"
    assert index.scope_of(FullBlock(name(4), name(3), b"")) == b"scope", "a chain goes on from what it learnt"
    assert index.scope_of(FullBlock(name(9), name(8), b"")) is None
    assert index.scope_of(FullBlock(name(9), b"", b"")) is None


def test_the_index_is_bounded() -> None:
    index = ScopeIndex(capacity=3)
    for i in range(10):
        index.note(b"scope", [name(i)])
    assert len(index) == 3
    assert index.scope_of(FullBlock(name(0), b"", b"")) is None
    assert index.scope_of(FullBlock(name(9), b"", b"")) == b"scope"
