"""The scheduler without a model: a toy that appends a token wherever one is due."""

from __future__ import annotations

import random
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.engine_contract import hashes, prompt, request
from weir_executor.engine import WaitingReason
from weir_executor.paged.batch import Batch, Scheduled
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.scheduler import Scheduler, SchedulerLimits
from weir_executor.paged.sequence import LiveRequest, Sequence, Status
from weir_executor.paged.tenants import TenantLimits, Tenants
from weir_executor.request import GenerationRequest, StoredPrefix

_BLOCK = 4


@dataclass
class Toy:
    """A scheduler, and steps that keep its every promise in view."""

    num_blocks: int = 64
    max_num_seqs: int = 8
    max_batched_tokens: int = 16
    tenants: dict[str, TenantLimits] = field(default_factory=dict)
    arrivals: int = 0
    computed_tokens: int = 0
    draft_dice: random.Random | None = None  # with it, rows get drafts of which some stand
    looks_ahead: bool = False
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        tenants = Tenants(self.tenants)
        limits = SchedulerLimits(self.max_num_seqs, self.max_batched_tokens, _BLOCK, tenants, self.looks_ahead)
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
        decoding = [(s, s.blocks) for s in sequences if s.status is Status.RUNNING and s.num_uncomputed == 1]
        batch = self.scheduler.schedule()
        if self.draft_dice is not None:
            self._draft(batch, self.draft_dice)
        # Who is preempted and comes back in one step, to blocks that others hold, is an admission.
        self._check(batch, [s for s, blocks in decoding if s.blocks is blocks])
        for scheduled in batch.scheduled:
            self.computed_tokens += scheduled.count
            new = self._draw(scheduled)
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

    def _draw(self, scheduled: Scheduled) -> list[int]:
        """Where a token is due, the row's drafts as far as they stand and one more, up to the sequence's end."""
        drafts, sequence = scheduled.draft_token_ids, scheduled.sequence
        standing = self.draft_dice.randint(0, len(drafts)) if self.draft_dice and drafts else 0
        new = [*drafts[:standing], len(sequence.token_ids) % 50] if scheduled.samples else []
        return new[: sequence.count_until_end(new)]

    def _draft(self, batch: Batch, dice: random.Random) -> None:
        for row in [row for row in batch.scheduled if row.samples]:
            most = min(dice.randint(0, 9), self.max_batched_tokens - batch.num_tokens)
            free = self.scheduler.pool.num_free
            room = self.scheduler.make_room_for_drafts(row.sequence, most)
            assert 0 <= room <= most
            assert self.scheduler.pool.num_free in (free, *range(self.scheduler.num_running, free))
            # A proposer may give fewer than it was asked for.
            batch.add_drafts(row, tuple(range(dice.randint(0, room))))

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
        st.integers(1, 40),
        st.integers(1, 20),
        st.integers(1, 3),
        st.integers(0, 2),
        st.booleans(),
        st.integers(0, 2),
        st.sampled_from(["", "acme", "zoo"]),
    )
    requests = []
    for key, (length, max_tokens, n, priority, hashed, start, tenant) in enumerate(draw(st.lists(shapes, max_size=12))):
        make = _hashed if hashed else request
        requests.append(make(key, prompt(length, start=start), max_tokens, n=n, priority=priority, tenant=tenant))
    return requests


# Quotas that the longest of `_requests` fits in, just; the fewest of each are met all the time.
_limits = st.builds(
    TenantLimits,
    weight=st.floats(0.1, 10),
    max_num_seqs=st.none() | st.integers(1, 3),
    max_blocks=st.none() | st.integers(15, 20),
)


@given(
    _requests(),
    st.tuples(st.integers(15, 40), st.integers(1, 8), st.integers(8, 40)),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3)), max_size=8),
    st.dictionaries(st.sampled_from(["", "acme", "*"]), _limits),
    st.tuples(st.none() | st.integers(), st.booleans()),
)
@settings(max_examples=150)
def test_everything_ends_and_every_block_returns(
    requests: list[GenerationRequest],
    limits: tuple[int, int, int],
    aborts: list[tuple[int, int]],
    tenants: dict[str, TenantLimits],
    beyond: tuple[int | None, bool],
) -> None:
    """And no quota is ever exceeded, which `check_integrity` sees to. `beyond`: a seed of drafts, and a look ahead."""
    draft_seed, looks_ahead = beyond
    dice = None if draft_seed is None else random.Random(draft_seed)
    toy = Toy(*limits, tenants, draft_dice=dice, looks_ahead=looks_ahead)
    num_blocks = limits[0]
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
    assert not toy.scheduler._share._active


@given(
    st.randoms(use_true_random=False),
    st.tuples(st.floats(0.25, 4), st.floats(0.25, 4)),
    st.integers(8, 40),
    st.integers(20, 60),
)
@settings(max_examples=15)
def test_tenants_that_always_have_work_are_served_by_weight(
    dice: random.Random, weights: tuple[float, float], budget: int, num_blocks: int
) -> None:
    """However their requests look: the counters stay within what a full batch can still be charged for."""
    slots, longest, most = 4, 12, 10
    limits = {name: TenantLimits(weight=weight) for name, weight in zip("ab", weights, strict=True)}
    toy = Toy(num_blocks, slots, budget, limits)
    bound = (2 * slots * most + longest) / min(weights)
    apart = 0.0
    for key in range(400):
        for tenant in "ab":
            while sum(live.request.tenant == tenant for live in toy.scheduler.live.values()) < slots + 1:
                shape = (dice.randint(1, longest), dice.randint(1, most)) if tenant == "a" else (longest, most)
                name = 1000 * key + len(toy.scheduler.live)
                toy.add(request(name, prompt(shape[0], start=key % 50), shape[1], tenant=tenant))
        toy.step()
        apart = max(apart, abs(toy.scheduler._share.counter("a") - toy.scheduler._share.counter("b")))
    assert apart <= bound
    assert toy.scheduler._share.counter("a") > 2 * bound, "long enough for a drift to show"


def test_a_flood_of_one_tenant_does_not_delay_another() -> None:
    toy = Toy(num_blocks=200, max_num_seqs=4)
    for key in range(50):
        toy.add(request(key, prompt(8, start=key), 8, tenant="flood"))
    for _ in range(20):
        toy.step()
    toy.add(request(99, prompt(8), 8, tenant="guest"))
    waited = next(steps for steps in range(100) if 99 in _keys(toy.step()))
    assert waited <= 8, "the next slot that comes free is its own"


def test_a_tenants_quotas_hold_it_back_and_nobody_else() -> None:
    toy = Toy(tenants={"acme": TenantLimits(max_num_seqs=2)}, max_batched_tokens=40)
    for key in range(4):
        toy.add(request(key, prompt(4, start=key), 9, tenant="acme"))
    toy.add(request(4, prompt(4, start=4), 9))
    assert _keys(toy.step()) == [0, 4, 1]
    narrow = Toy(tenants={"acme": TenantLimits(max_blocks=5)}, max_batched_tokens=40)
    for key in range(4):
        narrow.add(request(key, prompt(7, start=key), 9, tenant="acme" if key < 3 else ""))
    assert _keys(narrow.step()) == [0, 3, 1]
    narrow.run()


def test_at_its_block_quota_a_tenant_preempts_its_own_newest() -> None:
    toy = Toy(tenants={"acme": TenantLimits(max_blocks=6)}, max_batched_tokens=40)
    lives = [toy.add(request(key, prompt(7, start=key), 14, tenant="acme")) for key in range(2)]
    other = toy.add(request(2, prompt(7, start=2), 14))
    toy.run()
    assert [live.preemptions for live in lives] == [0, 1]
    assert other.preemptions == 0


def test_a_higher_priority_takes_a_slot_from_the_newest_of_the_lowest() -> None:
    toy = Toy(max_num_seqs=3)
    lives = [toy.add(request(key, prompt(4, start=key), 9, priority=key % 2)) for key in range(3)]
    toy.step()
    toy.step()
    emitted = [live.sequences[0].num_generated for live in lives]
    toy.add(request(9, prompt(4, start=9), 3, priority=5))
    assert 9 in _keys(toy.step())
    assert [live.preemptions for live in lives] == [0, 0, 1]
    assert lives[2].sequences[0].num_generated == emitted[2] > 0, "its tokens stay"
    toy.run()
    assert sum(live.preemptions for live in lives) == 1


def test_a_higher_priority_takes_the_blocks_it_needs_and_no_more() -> None:
    """The newest holds too little to be of use, and stays."""
    toy = Toy(num_blocks=16, max_batched_tokens=64)
    lives = [toy.add(request(key, prompt(length, start=key), 4)) for key, length in enumerate((14, 14, 2))]
    toy.step()
    toy.add(request(9, prompt(26, start=9), 3, priority=1))
    assert 9 in _keys(toy.step())
    assert [live.preemptions for live in lives] == [0, 1, 0]
    toy.run()


def test_equals_and_those_who_would_not_fit_anyway_preempt_nobody() -> None:
    toy = Toy(max_num_seqs=1)
    first = toy.add(request(0, prompt(4), 9, priority=1))
    toy.step()
    toy.add(request(1, prompt(4), 9, priority=1))
    toy.step()
    assert first.preemptions == 0
    full = Toy(num_blocks=12, max_batched_tokens=64)
    high = full.add(request(0, prompt(30), 9, priority=5))
    low = full.add(request(1, prompt(4), 9))
    full.step()
    full.add(request(2, prompt(30, start=4), 2, priority=3))
    full.step()
    assert (high.preemptions, low.preemptions) == (0, 0)
    full.run()


def test_within_its_quota_a_tenants_priorities_preempt_its_own_only() -> None:
    toy = Toy(tenants={"acme": TenantLimits(max_num_seqs=1)})
    own, other = (toy.add(request(key, prompt(4, start=key), 9, tenant=name)) for key, name in enumerate(["acme", ""]))
    toy.step()
    toy.add(request(9, prompt(4), 3, tenant="acme", priority=5))
    assert 9 in _keys(toy.step())
    assert (own.preemptions, other.preemptions) == (1, 0)
    toy.run()


def test_a_higher_priority_goes_before_a_long_prefill_under_way() -> None:
    toy = Toy(max_batched_tokens=8)
    toy.add(request(0, prompt(60), 2))
    toy.step()
    toy.add(request(1, prompt(12, start=2), 2, priority=1))
    assert [(s.sequence.live.key, s.count) for s in toy.step().scheduled] == [(1, 8)]
    assert [(s.sequence.live.key, s.count) for s in toy.step().scheduled] == [(1, 4), (0, 4)]


@given(_requests(), st.integers(15, 30), st.integers(1, 4))
@settings(max_examples=100)
def test_who_makes_others_go_runs_in_that_step(
    requests: list[GenerationRequest], num_blocks: int, max_num_seqs: int
) -> None:
    """So that nobody is preempted in vain, and none of a pair of sequences preempts the other in turn."""
    toy = Toy(num_blocks, max_num_seqs, max_batched_tokens=1000)
    make_way, gone = toy.scheduler._make_way, set[Sequence]()

    def spy() -> None:
        before = set(toy.scheduler._running)
        make_way()
        gone.update(before - set(toy.scheduler._running))

    toy.scheduler._make_way = spy  # type: ignore[method-assign]
    for generation in requests:
        toy.add(generation)
        gone.clear()
        started = {s for live in toy.scheduler.live.values() for s in live.sequences if s.status is Status.WAITING}
        scheduled = {s.sequence for s in toy.step().scheduled}
        if gone:
            assert max(s.priority for s in started & scheduled) > max(s.priority for s in gone)
        assert all(s.num_cached for s in gone & scheduled), "who comes back at once needed less than it held"
    toy.run()


def test_why_each_one_waits() -> None:
    toy = Toy(num_blocks=12, max_num_seqs=3, tenants={"acme": TenantLimits(max_num_seqs=1)}, max_batched_tokens=64)
    shapes = [(4, "acme"), (4, "acme"), (26, ""), (26, ""), (4, "")]
    lives = [toy.add(request(key, prompt(length), 9, tenant=tenant)) for key, (length, tenant) in enumerate(shapes)]
    toy.step()
    why = [toy.scheduler.why_waiting(live.sequences[0]) for live in lives if live.sequences[0].status is Status.WAITING]
    assert why == [WaitingReason.TENANT_SLOTS, WaitingReason.NO_BLOCKS, WaitingReason.BEHIND_ANOTHER]
    new = toy.add(request(5, prompt(4), 9))
    assert toy.scheduler.why_waiting(new.sequences[0]) is WaitingReason.BEHIND_ANOTHER

    slots = Toy(max_num_seqs=1)
    first, second = (slots.add(request(key, prompt(4), 9, priority=key)) for key in range(2))
    slots.step()
    assert slots.scheduler.why_waiting(first.sequences[0]) is WaitingReason.NO_SLOT
    slots.add(request(2, prompt(4), 9, priority=2))
    slots.step()
    assert slots.scheduler.why_waiting(second.sequences[0]) is WaitingReason.PREEMPTED

    tokens = Toy(max_batched_tokens=8)
    tokens.add(_hashed(0, prompt(22)))
    tokens.add(_hashed(1, prompt(22)))
    shared = tokens.scheduler.live[1].sequences[0]
    tokens.step()
    assert tokens.scheduler.why_waiting(shared) is WaitingReason.NO_TOKENS
    tokens.run()
    roomy = Toy(max_batched_tokens=40)
    roomy.add(_hashed(0, prompt(22)))
    roomy.add(_hashed(1, prompt(22)))
    roomy.step()
    assert roomy.scheduler.why_waiting(roomy.scheduler.live[1].sequences[0]) is WaitingReason.SHARED_PREFIX


def test_a_long_prompt_never_stalls_those_that_decode() -> None:
    toy = Toy(max_batched_tokens=8)
    toy.add(request(0, prompt(3), 30))
    toy.step()
    toy.add(request(1, prompt(40), 2))
    for _ in range(5):
        batch = toy.step()
        assert [(s.sequence.live.key, s.count) for s in batch.scheduled] == [(0, 1), (1, 7)]


def test_beside_decodes_prompts_advance_by_the_chunk_and_alone_by_the_budget() -> None:
    toy = Toy(max_batched_tokens=16)
    toy.add(request(0, prompt(30), 30))
    assert toy.scheduler.schedule(4).num_tokens == 16
    toy = Toy(max_batched_tokens=16)
    toy.add(request(0, prompt(3), 30))
    toy.step()
    toy.add(request(1, prompt(40), 2))
    assert [s.count for s in toy.scheduler.schedule(4).scheduled] == [1, 4]


def test_waiting_go_by_priority_then_arrival() -> None:
    toy = Toy(max_num_seqs=1)
    for key, priority in enumerate((0, 5, 0, 5)):
        toy.add(request(key, prompt(3), 1, priority=priority))
    assert [_keys(toy.step()) for _ in range(4)] == [[1], [3], [0], [2]]


def test_a_place_in_line_is_kept_for_one_who_comes_later() -> None:
    toy = Toy(max_num_seqs=1)
    for key, place in enumerate((1, 3, 4, 2)):
        toy.add(request(key, prompt(3), 1, place=place))
    assert [_keys(toy.step()) for _ in range(4)] == [[0], [3], [1], [2]]


def test_prompts_that_are_not_computed_yet_are_prefill_to_come_and_decodes_are_not() -> None:
    toy = Toy(max_batched_tokens=16)
    toy.add(request(0, prompt(3), 9))
    toy.step()
    toy.add(request(1, prompt(40), 9))
    assert toy.scheduler.outstanding_prefill_tokens == 40
    toy.step()
    assert toy.scheduler.outstanding_prefill_tokens == 40 - 15


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


def test_a_stored_prefix_that_many_share_is_loaded_once() -> None:
    toy, stored = Toy(), StoredPrefix(0, [b"a", b"b", b"c"])
    lives = [toy.add(_hashed(key, [*prompt(12), key, key], 4), stored) for key in range(4)]
    batch = toy.step()
    assert [load.payload for load in batch.loads] == [b"a", b"b", b"c"]
    assert _keys(batch) == [0, 1, 2, 3], "it is written before anything is computed"
    assert len({sequence.blocks[2] for live in lives for sequence in live.sequences}) == 1
    assert [(live.cached_prompt_tokens, live.loaded_prompt_tokens) for live in lives] == [(0, 12), *[(12, 0)] * 3]
    toy.run()


def test_a_request_that_fails_takes_no_block_from_those_who_share_its_load() -> None:
    toy, stored = Toy(), StoredPrefix(0, [b"a", b"b", b"c"])
    lives = [toy.add(_hashed(key, [*prompt(12), key, key], 4), stored) for key in range(2)]
    batch = toy.scheduler.schedule()
    shared = [load.block_id for load in batch.loads]
    assert not set(toy.scheduler.unshared_blocks(lives[0])) & set(shared), "what it wrote there is not only its own"
    toy.scheduler.finish_all(lives[0])
    (row,) = [row for row in batch.scheduled if row.sequence.live is lives[1]]
    toy.scheduler.advance(row, [7])
    toy.scheduler.check_integrity()
    assert [toy.scheduler.pool.is_findable(block_id) for block_id in shared] == [True] * 3
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


# ── drafts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _decoding(toy: Toy, prompt_length: int = 6, max_tokens: int = 30) -> tuple[Sequence, Batch]:
    """A sequence that has drawn its first token, and the step of its second."""
    live = toy.add(_hashed(0, prompt(prompt_length), max_tokens))
    toy.step()
    return live.sequences[0], toy.scheduler.schedule()


def test_drafts_that_stand_are_computed_and_the_room_of_others_goes_back() -> None:
    toy = Toy()
    sequence, batch = _decoding(toy)
    assert toy.scheduler.make_room_for_drafts(sequence, 9) == 9
    assert len(sequence.blocks) == 4
    batch.add_drafts(batch.scheduled[0], tuple(range(100, 109)))
    (row,) = batch.scheduled
    assert (row.count, row.token_ids[1:], batch.num_tokens) == (10, list(range(100, 109)), 10)
    new_blocks = toy.scheduler.advance(row, [100, 101, 7])
    assert sequence.token_ids[-3:] == [100, 101, 7]
    assert (sequence.num_computed, sequence.num_uncomputed, len(sequence.blocks)) == (9, 1, 3)
    assert [block.block_id for block in new_blocks] == [sequence.blocks[1]]
    toy.scheduler.check_integrity()


def test_a_block_of_drafts_that_do_not_stand_gets_no_hash() -> None:
    toy = Toy()
    sequence, batch = _decoding(toy)
    toy.scheduler.make_room_for_drafts(sequence, 9)
    batch.add_drafts(batch.scheduled[0], tuple(range(100, 109)))
    assert toy.scheduler.advance(batch.scheduled[0], [7]) == []
    assert [toy.scheduler.pool.is_findable(block_id) for block_id in sequence.blocks] == [True, False]
    toy.run()


def test_drafts_take_only_blocks_that_nobody_may_need_in_the_next_step() -> None:
    toy = Toy(num_blocks=4)
    sequence, _ = _decoding(toy)
    assert len(sequence.blocks) == 2
    assert toy.scheduler.make_room_for_drafts(sequence, 9) == 5, "one block of the two that are free"
    assert toy.scheduler.pool.num_free == 1
    assert toy.scheduler.make_room_for_drafts(sequence, 9) == 5
    assert toy.scheduler.make_room_for_drafts(sequence, 2) == 2
    assert toy.scheduler.make_room_for_drafts(sequence, -3) == 0


def test_a_restarted_sequence_waits_and_names_the_blocks_that_were_its_own() -> None:
    toy = Toy()
    sequence, _ = _decoding(toy)
    first, second = sequence.blocks
    assert toy.scheduler.restart(sequence) == [second]
    assert (sequence.status, sequence.blocks) == (Status.WAITING, [])
    assert toy.scheduler.pool.is_findable(first)
    toy.scheduler.check_integrity()
    toy.run()


@pytest.mark.parametrize(("num_blocks", "ahead"), [(4, 3), (3, 2)])
def test_who_looks_ahead_owns_a_block_for_the_token_after_next_where_one_is_to_spare(
    num_blocks: int, ahead: int
) -> None:
    toy = Toy(num_blocks=num_blocks, looks_ahead=True)
    (sequence,) = toy.add(request(1, [1, 2, 3, 4], 9)).sequences
    toy.step()
    for tokens, blocks in ((5, 2), (6, 2), (7, 2), (8, ahead)):
        assert len(sequence.token_ids) == tokens
        batch = toy.scheduler.schedule()
        assert len(sequence.blocks) == blocks
        toy.scheduler.advance(batch.scheduled[0], [7])
        toy.scheduler.check_integrity()
