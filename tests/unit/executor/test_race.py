"""Load or compute: the faster by what is known, the sure one when it is not, and never much worse than the better."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.estimate import Estimate
from weir_executor.kv_transfer.plan import TierRange
from weir_executor.kv_transfer.predictor import Computing, LoadPredictor
from weir_executor.kv_transfer.race import Decision, Patience, Race, cut

BLOCK_BYTES = 1000
MIN_BLOCKS = 4
NOTHING_AHEAD = Estimate(0.0)

seconds = st.floats(1e-5, 10.0)
estimates = st.builds(Estimate, seconds, st.floats(0.0, 10.0))
ranges = st.lists(st.builds(TierRange, st.integers(1, 300), st.sampled_from(["ram", "disk", "redis"])), max_size=5)
speeds = st.lists(st.tuples(st.sampled_from(["ram", "disk", "redis"]), seconds, st.integers(1, 10**6)), max_size=8)


def predictor_of(samples: Sequence[tuple[str, float, int]]) -> LoadPredictor:
    predictor = LoadPredictor(bytes_per_second=1e6)
    for tier, took, size in samples:
        predictor.tier(tier).note(took, size, took, size)
    return predictor


def known(tier_seconds: dict[str, float]) -> LoadPredictor:
    """Tiers that always take so long for each block, and nothing for the first."""
    predictor = LoadPredictor(bytes_per_second=1e6)
    for tier, block_seconds in tier_seconds.items():
        for _ in range(100):
            predictor.tier(tier).note(2 * block_seconds, 2 * BLOCK_BYTES, block_seconds, BLOCK_BYTES)
    return predictor


def computing(block_seconds: float, ahead: float = 0.0) -> Computing:
    return Computing(Estimate(block_seconds), Estimate(ahead))


# ── deciding ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fast_tier_is_loaded_and_what_a_slow_one_holds_is_computed() -> None:
    race = Race(known({"ram": 0.001, "disk": 0.1}), BLOCK_BYTES, MIN_BLOCKS)
    decision = race.decide([TierRange(10, "ram"), TierRange(50, "disk")], computing(0.01))
    assert decision.ranges == [TierRange(10, "ram")]
    assert (decision.blocks, decision.explores) == (10, False)


def test_a_slow_range_before_a_fast_one_is_loaded_when_both_together_pay() -> None:
    race = Race(known({"ram": 0.001, "disk": 0.02}), BLOCK_BYTES, MIN_BLOCKS)
    assert race.decide([TierRange(10, "disk"), TierRange(90, "ram")], computing(0.01)).blocks == 100
    assert race.decide([TierRange(10, "disk"), TierRange(9, "ram")], computing(0.01)).blocks == 0


def test_what_loads_while_the_request_waits_its_turn_costs_nothing() -> None:
    race = Race(known({"disk": 0.02}), BLOCK_BYTES, MIN_BLOCKS)
    assert race.decide([TierRange(10, "disk")], computing(0.01)).blocks == 0
    assert race.decide([TierRange(10, "disk")], computing(0.01, ahead=0.5)).blocks == 10


def test_when_the_guess_is_unsure_it_is_computed() -> None:
    sure, unsure = known({"ram": 0.008}), known({"ram": 0.008})
    for i in range(50):
        took = 0.0 if i % 2 else 0.016  # the same on average
        unsure.tier("ram").note(took, 2 * BLOCK_BYTES, 0.0, BLOCK_BYTES)
    for predictor, blocks in ((sure, 40), (unsure, 0)):
        race = Race(predictor, BLOCK_BYTES, MIN_BLOCKS)
        assert race.decide([TierRange(40, "ram")], computing(0.01)).blocks == blocks


def test_before_anything_was_computed_all_is_loaded() -> None:
    race = Race(LoadPredictor(bytes_per_second=1.0), BLOCK_BYTES, MIN_BLOCKS)
    decision = race.decide([TierRange(40, "ram")], Computing(None, NOTHING_AHEAD))
    assert (decision.blocks, decision.compute) == (40, None)


def test_a_guess_that_nothing_was_measured_for_is_taken_as_it_is() -> None:
    race = Race(LoadPredictor(bytes_per_second=0.8 * BLOCK_BYTES / 0.01), BLOCK_BYTES, MIN_BLOCKS)
    assert race.decide([TierRange(100, "ram")], computing(0.01)).blocks == MIN_BLOCKS
    race = Race(LoadPredictor(bytes_per_second=1.2 * BLOCK_BYTES / 0.01), BLOCK_BYTES, MIN_BLOCKS)
    assert race.decide([TierRange(100, "ram")], computing(0.01)).blocks == 100


@pytest.mark.parametrize("came", [True, False])
def test_a_tier_that_was_never_tried_is_tried_at_once_on_a_few_blocks(came: bool) -> None:
    predictor = LoadPredictor(bytes_per_second=1.0)
    race = Race(predictor, BLOCK_BYTES, MIN_BLOCKS)
    decision = race.decide([TierRange(40, "ram")], computing(0.01))
    assert (decision.blocks, decision.explores) == (MIN_BLOCKS, True)
    if came:
        predictor.tier("ram").note(100.0, BLOCK_BYTES, 100.0, BLOCK_BYTES)
    else:
        predictor.tier("ram").note_nothing(0.1)
    assert race.decide([TierRange(40, "ram")], computing(0.01)).blocks == 0


def test_a_try_has_the_time_that_computing_all_of_it_takes() -> None:
    """A tier's latency is the same for few blocks: given only their time, it would never be seen to pay for all."""
    race = Race(LoadPredictor(bytes_per_second=1e6), BLOCK_BYTES, MIN_BLOCKS)
    decision = race.decide([TierRange(40, "ram")], computing(1e-4))
    assert (decision.blocks, decision.explores) == (MIN_BLOCKS, True)
    assert decision.compute is not None
    assert decision.stake is not None
    assert [decision.compute.mean, decision.stake.mean] == pytest.approx([4e-4, 4e-3])
    patience = Patience(decision, NOTHING_AHEAD, asked_at=10.0, begins_at=10.001, most_seconds=100.0)
    assert patience.seconds_left(10.001) == pytest.approx(0.003)


@given(latency=st.floats(0.0, 1.0), transfer=st.floats(0.001, 1.0))
def test_a_tier_whose_first_load_was_given_up_is_used_if_it_pays(latency: float, transfer: float) -> None:
    """Forty blocks, each 10 ms to compute. Their first load was late for a reason of its own."""
    predictor, stored, compute = LoadPredictor(bytes_per_second=1e6), [TierRange(40, "redis")], computing(0.01)
    race = Race(predictor, BLOCK_BYTES, MIN_BLOCKS)
    predictor.note_load(stored, BLOCK_BYTES, began_at=0.0, marks=[], given_up_at=0.4)
    for _ in range(1000):
        decision = race.decide(stored, compute)
        if decision.blocks:
            marks, given_up_at = played(decision, latency, transfer / 40)
            predictor.note_load(decision.ranges, BLOCK_BYTES, began_at=0.0, marks=marks, given_up_at=given_up_at)
    if latency + transfer < 0.3:
        assert decision.blocks == 40
    if latency + transfer > 0.5:
        assert decision.blocks < 40


def played(decision: Decision, latency: float, block: float) -> tuple[list[tuple[int, float]], float | None]:
    """What comes of a load, and when it was given up if it was."""
    patience = Patience(decision, NOTHING_AHEAD, asked_at=0.0, begins_at=0.0, most_seconds=100.0)
    now, marks = 0.0, list[tuple[int, float]]()
    for count in range(1, decision.blocks + 1):
        comes_at, left = latency + count * block, patience.seconds_left(now)
        if comes_at > now + left:
            return marks, now + max(0.0, left)
        now = comes_at
        patience.note(count, now)
        marks.append((count, now))
    return marks, None


def test_a_slow_tier_is_looked_at_again_now_and_then() -> None:
    race = Race(known({"ram": 1.0}), BLOCK_BYTES, MIN_BLOCKS)
    tried = [race.decide([TierRange(40, "ram")], computing(0.01)).blocks for _ in range(158)]
    assert [number for number, blocks in enumerate(tried, 1) if blocks] == [2, 6, 14, *range(30, 159, 16)]
    assert set(tried) == {0, MIN_BLOCKS}


def test_a_tier_that_was_worth_loading_from_meanwhile_is_tried_as_soon_as_at_first() -> None:
    race = Race(known({"ram": 1.0}), BLOCK_BYTES, MIN_BLOCKS)

    def tries(count: int, block_seconds: float) -> list[bool]:
        decisions = [race.decide([TierRange(40, "ram")], computing(block_seconds)) for _ in range(count)]
        return [decision.explores for decision in decisions]

    assert tries(7, 0.01) == [False, True, False, False, False, True, False]
    assert race.decide([TierRange(40, "ram")], computing(100.0)).blocks == 40
    assert tries(3, 0.01) == [False, True, False]


@given(ranges, speeds, st.none() | estimates, estimates)
def test_what_is_decided_pays_by_the_slow_end_of_loading_and_the_fast_end_of_computing(
    stored: list[TierRange], samples: list[tuple[str, float, int]], block: Estimate | None, ahead: Estimate
) -> None:
    predictor = predictor_of(samples)
    decision = Race(predictor, BLOCK_BYTES, MIN_BLOCKS).decide(stored, Computing(block, ahead))
    total = sum(each.blocks for each in stored)
    assert decision.blocks == 0 or MIN_BLOCKS <= decision.blocks <= total
    assert list(decision.ranges) == cut(stored, decision.blocks)
    if block is None or decision.explores:
        return

    def gain(blocks: int) -> float:
        ranges = cut(stored, blocks)
        load, luck = predictor.seconds(ranges, BLOCK_BYTES), 1.0 if predictor.knows(ranges) else 0.0
        return (block * blocks).lower(luck) - max(0.0, load.upper(luck) - ahead.lower(luck))

    ends = [sum(each.blocks for each in stored[: i + 1]) for i in range(len(stored))]
    best = max([0.0, *(gain(end) for end in ends if end >= MIN_BLOCKS)])
    assert (gain(decision.blocks) if decision.blocks else 0.0) == pytest.approx(best)


def test_who_could_compute_it_before_the_store_answers_does_not_ask() -> None:
    predictor = known({"ram": 0.001})
    for _ in range(200):
        predictor.note_match(0.05)
    race = Race(predictor, BLOCK_BYTES, MIN_BLOCKS)
    assert race.worth_asking(10, computing(0.01))
    assert race.worth_asking(4, Computing(None, NOTHING_AHEAD))
    assert race.worth_asking(4, computing(0.01, ahead=1.0)), "there is time"
    asked = [race.worth_asking(4, computing(0.01)) for _ in range(46)]
    assert [number for number, asks in enumerate(asked, 1) if asks] == [2, 6, 14, 30, 46], "it may have become faster"
    assert race.answer_seconds(4, computing(0.01)) == pytest.approx(0.05, rel=0.01)
    assert race.answer_seconds(40, computing(0.01)) == pytest.approx(0.4)


# ── giving up ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def patience_of(decision: Decision, ahead: float = 0.0, most: float = 100.0) -> Patience:
    return Patience(decision, Estimate(ahead), asked_at=10.0, begins_at=10.1, most_seconds=most)


def load_of(blocks: int, load: float, compute: float | None) -> Decision:
    return Decision([TierRange(blocks, "ram")], Estimate(load), None if compute is None else Estimate(compute))


def test_a_load_that_comes_too_late_is_given_up_when_computing_would_be_done() -> None:
    patience = patience_of(load_of(10, load=0.2, compute=1.0))
    assert patience.seconds_left(10.1) == pytest.approx(0.9)
    assert patience.seconds_left(11.5) < 0


def test_with_little_left_it_is_given_up_sooner() -> None:
    patience = patience_of(load_of(10, load=0.2, compute=1.0))
    patience.note(9, 10.5)
    assert patience.seconds_left(10.5) == pytest.approx(0.1)


def test_nothing_is_late_before_it_is_behind_its_own_prediction() -> None:
    patience = patience_of(load_of(10, load=0.5, compute=1.0))
    patience.note(9, 10.2)
    assert patience.seconds_left(10.2) == pytest.approx(0.4)


def test_until_its_turn_it_keeps_nobody_waiting() -> None:
    patience = patience_of(load_of(10, load=0.2, compute=1.0), ahead=5.0)
    assert patience.seconds_left(10.1) == pytest.approx(5.9)
    patience.note(5, 11.0)
    assert patience.seconds_left(11.0) == pytest.approx(4.5)


def test_the_limit_holds_whatever_computing_takes() -> None:
    assert patience_of(load_of(10, 0.2, compute=100.0), most=0.3).seconds_left(10.1) == pytest.approx(0.2)
    assert patience_of(load_of(10, 0.2, compute=None), most=0.3).seconds_left(10.1) == pytest.approx(0.2)


@given(
    st.builds(load_of, st.integers(1, 100), load=seconds, compute=st.floats(1e-3, 10.0)),
    st.floats(0.0, 10.0),
    st.floats(0.01, 20.0),
    st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 30))),
)
def test_whatever_comes_when_it_is_at_most_twice_as_late_as_computing(
    decision: Decision, ahead: float, most: float, arrivals: list[tuple[float, int]]
) -> None:
    assert decision.compute is not None
    blocks, compute, patience = decision.blocks, decision.compute.mean, patience_of(decision, ahead, most)
    now, came = 10.1, 0
    for pause, some in arrivals:
        left = max(0.0, patience.seconds_left(now))
        if pause > left or came + some >= blocks:
            now += min(pause, left)
            break
        now, came = now + pause, came + some
        patience.note(came, now)
    else:
        now += max(0.0, patience.seconds_left(now))
    waited = now - 10.0
    assert waited <= max(0.1, min(most, ahead + compute)) + 1e-6
    assert max(waited, ahead) + compute * (blocks - came) / blocks <= max(0.1, ahead) + 2 * compute + 1e-6


@given(ranges, st.integers(0, 2000))
def test_the_first_blocks_of_ranges(stored: list[TierRange], blocks: int) -> None:
    flat = [each.tier for each in stored for _ in range(each.blocks)]
    assert [each.tier for each in cut(stored, blocks) for _ in range(each.blocks)] == flat[:blocks]
