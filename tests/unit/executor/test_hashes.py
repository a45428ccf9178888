"""Memories of hashes are bounded and forget the oldest first."""

from __future__ import annotations

from weir_executor.kv_transfer.hashes import RecentHashes


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
