"""What loads took is what they are predicted to take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.engine import EngineLoad
from weir_executor.estimate import Estimate
from weir_executor.fake import FakeEngine
from weir_executor.kv_transfer.plan import TierRange
from weir_executor.kv_transfer.predictor import LoadPredictor, TierSpeed, computing

BLOCK = 1000


def load(predictor: LoadPredictor, ranges: list[TierRange], first: float, byte: dict[str, float]) -> None:
    """As a tier sends that needs `first` seconds to begin and so long for each byte: one block after the other."""
    now, count, marks = 5.0, 0, []
    for each in ranges:
        now += first
        for _ in range(each.blocks):
            now, count = now + byte[each.tier] * BLOCK, count + 1
            marks.append((count, now))
    predictor.note_load(ranges, BLOCK, began_at=5.0, marks=marks)


@given(st.floats(1e-4, 1.0), st.floats(1e-9, 1e-4), st.floats(1e-9, 1e-4), st.integers(2, 50), st.integers(2, 50))
def test_each_tier_is_learned_from_its_own_part_of_a_load(
    first: float, ram: float, disk: float, ram_blocks: int, disk_blocks: int
) -> None:
    predictor, ranges = LoadPredictor(1e6), [TierRange(ram_blocks, "ram"), TierRange(disk_blocks, "disk")]
    assert not predictor.knows(ranges)
    for _ in range(60):
        load(predictor, ranges, first, {"ram": ram, "disk": disk})
    assert predictor.knows(ranges)
    expected = 2 * first + ram * ram_blocks * BLOCK + disk * disk_blocks * BLOCK
    assert predictor.seconds(ranges, BLOCK).mean == pytest.approx(expected, rel=0.01)
    assert predictor.tier("disk").byte.mean == pytest.approx(disk, rel=0.01)
    assert predictor.tier("ram").first.mean == pytest.approx(first, rel=0.05)


@given(st.floats(1e-4, 10.0), st.integers(1, 1000))
def test_what_comes_at_once_is_learned_as_a_whole(took: float, blocks: int) -> None:
    predictor, ranges = LoadPredictor(1e6), [TierRange(blocks, "ram")]
    for _ in range(60):
        predictor.note_load(ranges, BLOCK, began_at=0.0, marks=[(blocks, took)])
    assert predictor.seconds(ranges, BLOCK).mean == pytest.approx(took, rel=0.01)


def test_blocks_of_two_tiers_that_come_together_count_for_the_last() -> None:
    predictor = LoadPredictor(1e6)
    predictor.note_load([TierRange(2, "ram"), TierRange(2, "disk")], BLOCK, began_at=0.0, marks=[(4, 1.0)])
    assert not predictor.tier("ram").measured
    assert predictor.tier("disk").seconds(4 * BLOCK).mean == pytest.approx(1.0)


def test_a_load_that_was_given_up_counts_as_slow_as_it_was_seen_to_be() -> None:
    ranges = [TierRange(4, "ram"), TierRange(4, "disk")]
    stalled = LoadPredictor(1e9)
    stalled.note_load(ranges, BLOCK, began_at=0.0, marks=[(1, 0.1), (2, 0.2)], given_up_at=2.2)
    assert stalled.tier("ram").seconds(2 * BLOCK).mean > 2.0
    assert not stalled.tier("disk").measured
    never = LoadPredictor(1e9)
    never.note_load(ranges, BLOCK, began_at=0.0, marks=[], given_up_at=2.0)
    assert never.tier("ram").first == Estimate(2.0, 1.0)
    second = LoadPredictor(1e9)
    second.note_load(ranges, BLOCK, began_at=0.0, marks=[(2, 0.1), (4, 0.2)], given_up_at=2.2)
    assert second.tier("ram").seconds(4 * BLOCK).mean == pytest.approx(0.2)
    assert second.tier("disk").first.mean == pytest.approx(2.0)


def test_what_was_given_up_before_anything_came_is_forgotten_once_something_has() -> None:
    predictor, ranges = LoadPredictor(1e9), [TierRange(4, "redis")]
    assert not predictor.tried(ranges)
    for given_up_at in (2.0, 0.1):
        predictor.note_load(ranges, BLOCK, began_at=0.0, marks=[], given_up_at=given_up_at)
        assert (predictor.tried(ranges), predictor.knows(ranges)) == (True, False)
        assert predictor.tier("redis").first.mean == 2.0, "that it had not come sooner is no news"
    predictor.note_load(ranges, BLOCK, began_at=0.0, marks=[(2, 0.01), (4, 0.02)])
    assert predictor.knows(ranges)
    assert predictor.seconds(ranges, BLOCK).mean == pytest.approx(0.02)


def test_names_without_end_are_taken_for_one() -> None:
    predictor = LoadPredictor(1e6)
    tiers = {id(predictor.tier(f"tier {i}")) for i in range(1000)}
    assert len(tiers) == 17


@given(st.floats(1e-3, 1.0), st.integers(1, 10**6))
def test_a_split_never_runs_back(took: float, size: int) -> None:
    speed = TierSpeed(Estimate(1e-6, 5e-7))
    speed.note(took, size, took, size)
    assert speed.first.mean >= 0
    assert speed.byte.mean >= 0


def test_computing_takes_what_the_engine_says_and_waits_for_what_is_ahead() -> None:
    info = FakeEngine().info
    idle = EngineLoad(0, 0, 0, 9, 9, 0, 0, 0, 0.0)
    assert computing(idle, info).blocks(7) is None
    busy = EngineLoad(
        9, 0, 0, 9, 9, 0, 0, 0, 0.0, outstanding_prefill_tokens=100, prefill_token_seconds=Estimate(0.01, 0.001)
    )
    known = computing(busy, info)
    assert known.ahead == Estimate(1.0, 0.1)
    assert known.blocks(2) == Estimate(0.01 * 16 * 2, 0.001 * 16 * 2)
