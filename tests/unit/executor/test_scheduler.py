"""The scheduler without a model: a toy that appends a token wherever one is due."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from contract.engine_contract import hashes, prompt, request
from weir_executor.engine import GenerationRequest, StoredPrefix
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.scheduler import Batch, Scheduler, SchedulerLimits
from weir_executor.paged.sequence import LiveRequest, Sequence, Status

_BLOCK = 4


@dataclass
class Toy:
    """A scheduler, and steps that keep its every promise in view."""

    num_blocks: int = 64
    max_num_seqs: int = 8
    max_batched_tokens: int = 16
    arrivals: int = 0
    computed_tokens: int = 0
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        limits = SchedulerLimits(self.max_num_seqs, self.max_batched_tokens, _BLOCK)
        self.scheduler = Scheduler(BlockPool(self.num_blocks), limits)

    def add(self, generation: GenerationRequest, stored: StoredPrefix | None = None) -> LiveRequest:
        self.arrivals += 1
        live = LiveRequest(
            generation,
            self.arrivals,
            generation.stop_token_ids,
            shares_blocks=bool(generation.block_hashes),
            submitted_at=0.0,
            stored_blocks=list(stored.blocks) if stored else [],
            first_stored_block=stored.first_block if stored else 0,
        )
        self.scheduler.add(live)
        return live

    def step(self) -> Batch:
        sequences = [sequence for live in self.scheduler.live.values() for sequence in live.sequences]
        decoding = [s for s in sequences if s.status is Status.RUNNING and s.num_uncomputed == 1]
        batch = self.scheduler.schedule()
        self._check(batch, decoding)
        for scheduled in batch.scheduled:
            self.computed_tokens += scheduled.count
            new = [len(scheduled.sequence.token_ids) % 50] if scheduled.samples else []
            self.scheduler.advance(scheduled, new)
            if new and scheduled.sequence.finish_reason():
                self.scheduler.finish(scheduled.sequence)
        self.scheduler.check_integrity()
        return batch

    def run(self, limit: int = 5000) -> int:
        """Steps until nothing is live."""
        for steps in range(limit):
            if not self.scheduler.live:
                return steps
            self.step()
        raise AssertionError("the scheduler does not come to an end")

    def _check(self, batch: Batch, decoding: list[Sequence]) -> None:
        counts = [scheduled.count for scheduled in batch.scheduled]
        assert batch.num_tokens == sum(counts) <= self.max_batched_tokens
        assert len(counts) <= self.max_num_seqs
        assert len({id(scheduled.sequence) for scheduled in batch.scheduled}) == len(counts)
        decodes = [scheduled.sequence in decoding for scheduled in batch.scheduled]
        assert decodes == sorted(decodes, reverse=True), "decodes come first"


def _hashed(key: int, token_ids: list[int], max_tokens: int = 4, **fields: Any) -> GenerationRequest:
    known = hashes(token_ids, _BLOCK)
    return request(key, token_ids, max_tokens, block_hashes=known, cache_scope=b"toy", **fields)


def _keys(batch: Batch) -> list[int]:
    return [scheduled.sequence.live.key for scheduled in batch.scheduled]


@st.composite
def _requests(draw: st.DrawFn) -> list[GenerationRequest]:
    shapes = st.tuples(
        st.integers(1, 40), st.integers(1, 20), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.integers(0, 2)
    )
    requests = []
    for key, (length, max_tokens, n, priority, hashed, start) in enumerate(draw(st.lists(shapes, max_size=12))):
        make = _hashed if hashed else request
        requests.append(make(key, prompt(length, start=start), max_tokens, n=n, priority=priority))
    return requests


@given(
    _requests(),
    st.integers(15, 40),
    st.integers(1, 8),
    st.integers(8, 40),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3)), max_size=8),
)
@settings(max_examples=100, deadline=None)
def test_everything_ends_and_every_block_returns(
    requests: list[GenerationRequest], num_blocks: int, max_num_seqs: int, budget: int, aborts: list[tuple[int, int]]
) -> None:
    toy = Toy(num_blocks, max_num_seqs, budget)
    lives = [toy.add(generation) for generation in requests]
    for key, steps in aborts:
        for _ in range(steps if toy.scheduler.live else 0):
            toy.step() if toy.scheduler.live else None
        if key in toy.scheduler.live:
            toy.scheduler.finish_all(lives[key])
            toy.scheduler.check_integrity()
    toy.run()
    assert toy.scheduler.pool.num_free == num_blocks
    assert toy.scheduler.outstanding_tokens == 0


def test_a_long_prompt_never_stalls_those_that_decode() -> None:
    toy = Toy(max_batched_tokens=8)
    toy.add(request(0, prompt(3), 30))
    toy.step()
    toy.add(request(1, prompt(40), 2))
    for _ in range(5):
        batch = toy.step()
        assert [(s.sequence.live.key, s.count) for s in batch.scheduled] == [(0, 1), (1, 7)]


def test_waiting_go_by_priority_then_arrival() -> None:
    toy = Toy(max_num_seqs=1)
    for key, priority in enumerate((0, 5, 0, 5)):
        toy.add(request(key, prompt(3), 1, priority=priority))
    assert [_keys(toy.step()) for _ in range(4)] == [[1], [3], [0], [2]]


def test_the_newest_of_the_lowest_priority_is_preempted() -> None:
    toy = Toy(num_blocks=8, max_batched_tokens=32)
    for key, priority in enumerate((0, 0, 9)):
        toy.add(request(key, prompt(7, start=key), 9, priority=priority))
    while not toy.scheduler.preemptions:
        toy.step()
    assert [live.preemptions for live in toy.scheduler.live.values()] == [0, 1, 0]
    (victim,) = toy.scheduler.live[1].sequences
    assert victim.num_generated > 0, "its tokens stay"
    assert victim.num_computed == 0
    toy.run()


def test_who_does_not_fit_is_not_overtaken() -> None:
    toy = Toy(num_blocks=8, max_batched_tokens=64)
    toy.add(request(0, prompt(16), 8))
    toy.step()
    toy.add(request(1, prompt(24), 4))
    toy.add(request(2, prompt(2), 1))
    assert _keys(toy.step()) == [0]


def test_a_block_under_way_is_awaited_and_not_computed_twice() -> None:
    toy = Toy(max_batched_tokens=8)
    for key in range(3):
        toy.add(_hashed(key, prompt(22), 2))
    assert _keys(toy.step()) == [0]
    toy.run()
    assert toy.computed_tokens == 22 + 2 * (22 - 20) + 3
    assert toy.scheduler.pool.num_cached == 5


def test_when_the_one_who_computes_goes_another_takes_over() -> None:
    toy = Toy(max_batched_tokens=8)
    first, second = (toy.add(_hashed(key, prompt(22), 2)) for key in range(2))
    toy.step()
    toy.scheduler.finish_all(first)
    assert _keys(toy.step()) == [1]
    assert second.cached_prompt_tokens == 8


def test_outputs_of_one_prompt_share_its_full_blocks_without_hashes() -> None:
    toy = Toy(max_batched_tokens=32)
    live = toy.add(request(0, prompt(22), 3, n=3))
    assert len(toy.step().scheduled) == 1
    toy.step()
    shared = [sequence.blocks[:5] for sequence in live.sequences]
    assert shared[0] == shared[1] == shared[2]
    assert len({sequence.blocks[5] for sequence in live.sequences}) == 3
    toy.run()
    assert toy.computed_tokens == 22 + 2 * 2 + 3 * 2
    assert toy.scheduler.pool.num_cached == 0


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    toy = Toy(num_blocks=9, max_batched_tokens=64)
    lives = [toy.add(_hashed(key, prompt(12, start=key), 14)) for key in range(2)]
    toy.run()
    assert sum(live.preemptions for live in lives) > 0
    recomputed = toy.computed_tokens - 2 * (12 + 14 - 1)
    assert 0 < recomputed < 12, "most of what it had lost was still in the cache"


def test_a_stored_prefix_goes_on_where_the_known_one_ends() -> None:
    toy = Toy()
    toy.add(_hashed(0, prompt(9), 1))
    toy.run()
    stored: Items[bytes] = [bytes([index]) for index in range(1, 5)]
    live = toy.add(_hashed(1, prompt(19), 4), StoredPrefix(1, stored))
    batch = toy.step()
    (sequence,) = live.sequences
    assert (live.cached_prompt_tokens, live.loaded_prompt_tokens) == (8, 8)
    assert [(load.block_id, load.payload) for load in batch.loads] == [
        (sequence.blocks[2], stored[1]),
        (sequence.blocks[3], stored[2]),
    ]
    assert batch.num_tokens == 3
    toy.run()


def test_a_stored_prefix_beyond_a_gap_is_of_no_use() -> None:
    toy = Toy()
    live = toy.add(_hashed(0, prompt(19), 4), StoredPrefix(1, [b"x", b"y"]))
    assert toy.step().loads == []
    assert live.loaded_prompt_tokens == 0
    toy.run()


def test_resumed_tokens_are_computed_and_not_counted_as_prompt() -> None:
    toy = Toy()
    live = toy.add(request(0, prompt(5), 9, resumed={0: [1, 2, 3]}))
    (sequence,) = live.sequences
    assert (sequence.num_generated, sequence.num_outstanding) == (3, 8 + 6)
    assert toy.step().num_tokens == 8
    toy.run()


def test_numbers_of_a_sequence_are_asserted() -> None:
    sequence = Sequence(Toy().add(request(0, prompt(5))), 0, [1, 2, 3], [], num_computed=4)
    try:
        sequence.check_integrity(_BLOCK)
    except AssertionError:
        return
    raise RuntimeError("a sequence computed more tokens than it has")
