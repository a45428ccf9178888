"""Waiting, running, preempted → Batch. Pure: no torch, no I/O, no clock.

Every step has one budget of tokens (`max_batched_tokens`), spent in this order:

    1. decodes     running sequences with one token to compute, so that a long prompt never stalls the others
    2. prefills    running sequences in the middle of their tokens, in chunks
    3. admissions  waiting sequences, while blocks and slots are free; those of higher priority before 2

Everywhere the order is the same: higher priority first, then the tenant whose turn it is (see `tenants.py`), then first
come, first served. It is settled once per step, before anything is scheduled.

The last in order is preempted when a decode needs a block and none is free, and when a waiting sequence of higher
priority needs its slot or blocks: it gives its blocks back and waits again. Its tokens stay; they are computed anew
when it returns, from whatever the prefix index still holds. A running sequence owns at least its last block alone, so
that a preemption always frees one. Who had to go for a priority can make only lower ones go: there is no ping-pong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import islice, takewhile

from weir_executor.engine import WaitingReason
from weir_executor.paged.admissions import MAX_DEFERRED, Admissions
from weir_executor.paged.batch import Batch, BlockLoad, NewBlock, Scheduled
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.held import HeldBlocks
from weir_executor.paged.known_prefix import known_prefix, stands_back
from weir_executor.paged.room import OF_TENANT, Room, choose_victims
from weir_executor.paged.sequence import LiveRequest, Sequence, Status, new_sequences
from weir_executor.paged.tenants import FairShare, Tenants, TenantUse
from weir_executor.paged.waiting import WaitingQueue

CountUsable = Callable[[Items[bytes | memoryview]], int]  # how many of a stored prefix's leading blocks are sound


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_num_seqs: int
    max_batched_tokens: int
    block_size: int
    tenants: Tenants = field(default_factory=Tenants)
    looks_ahead: bool = False  # the device launches a step before the tokens of the one before it are known

    def __post_init__(self) -> None:
        assert self.max_num_seqs > 0, self
        assert self.block_size > 0, self
        assert self.max_batched_tokens >= self.max_num_seqs, "every running sequence must be able to decode in one step"


class Scheduler:
    """Decides what the next step computes, and owns every sequence and its blocks until it ends."""

    def __init__(self, pool: BlockPool, limits: SchedulerLimits, count_usable: CountUsable = len) -> None:
        """`count_usable` looks at every byte of the blocks it is given, so it is given only those to be loaded."""
        self._count_usable = count_usable
        self.pool, self.limits, self.held = pool, limits, HeldBlocks(pool)
        self.live: dict[int, LiveRequest] = {}
        self.preemptions = 0
        self.progress = 0  # grows with each token that is computed for the first time, and each output that ends
        self._share, self._use = FairShare(limits.tenants), TenantUse()
        self._waiting = WaitingQueue(self._share)
        self._running: list[Sequence] = []  # in order, as of the step's begin
        self._admissions = Admissions()  # of the newest step
        self._loading: dict[bytes, int] = {}  # blocks that the newest step writes before it computes, by hash

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting_requests(self) -> int:
        """Requests of which nothing runs."""
        running = {sequence.live.key for sequence in self._running}
        return len({sequence.live.key for sequence in self._waiting} - running)

    @property
    def outstanding_prefill_tokens(self) -> int:
        """One that decodes has a single token to compute, which is no prefill."""
        uncomputed = (sequence.num_uncomputed for sequence in (*self._running, *self._waiting))
        return sum(count for count in uncomputed if count > 1)

    @property
    def outstanding_tokens(self) -> int:
        return sum(sequence.num_outstanding for sequence in (*self._running, *self._waiting))

    def add(self, live: LiveRequest) -> None:
        """Take a request in. Its sequences wait from now on."""
        assert live.key not in self.live, live.key
        live.sequences = new_sequences(live, self.limits.block_size)
        self.live[live.key] = live
        self._share.enter(live.request.tenant)
        for sequence in live.sequences:
            self._waiting.add(sequence)

    def schedule(self, chunk_tokens: int | None = None) -> Batch:
        """The next step. Changes who runs and who owns which block; computes nothing.

        `chunk_tokens`: of prompts, at most so many beside decodes. A step without decodes keeps nobody waiting.
        """
        batch, self._admissions = Batch(most_tokens=self.limits.max_batched_tokens), Admissions()
        self._loading.clear()
        self._running.sort(key=self._order)
        decoding = self._make_room_for_decodes()
        self._make_way()
        self._schedule_decodes(batch, decoding)
        if chunk_tokens is not None and batch.num_tokens:
            batch.most_tokens = min(batch.most_tokens, batch.num_tokens + chunk_tokens)
        self._schedule_prefills(batch)
        self._admit(batch)
        if self.limits.looks_ahead:
            self._look_ahead(batch)
        assert batch.scheduled or not self.live, "there is work and nothing can be scheduled"
        return batch

    def advance(self, scheduled: Scheduled, new_token_ids: Items[int] = ()) -> list[NewBlock]:
        """Note that these tokens' KV is written, and what was drawn after them.

        Of several new tokens all but the last were drafts, so that their KV is written too; room that was made for
        drafts and is not needed goes back. Returns the blocks that became full and findable.
        """
        sequence = scheduled.sequence
        sequence.extend(new_token_ids)
        self._share.charge(sequence.tenant, generated=len(new_token_ids))
        sequence.hash_full_blocks(self.limits.block_size)
        sequence.num_computed += scheduled.num_own + max(0, len(new_token_ids) - 1)
        self.progress += max(0, sequence.num_computed - sequence.num_reached)
        sequence.num_reached = max(sequence.num_reached, sequence.num_computed)
        self._give_surplus_back(sequence)
        return self._store_full_blocks(sequence, computed_from=scheduled.first)

    def make_room_for_drafts(self, sequence: Sequence, most: int) -> int:
        """Blocks for up to `most` drafts after a sequence's tokens, of those that are free, and for how many there is.

        One block stays in hand for each running sequence: no draft causes a preemption. `advance` takes back the rest.
        """
        missing = self._blocks_for(len(sequence.token_ids) + most) - len(sequence.blocks)
        self._grow(sequence, max(0, min(missing, self._room().spare_blocks(sequence.tenant))))
        return max(0, min(most, len(sequence.blocks) * self.limits.block_size - len(sequence.token_ids)))

    def restart(self, sequence: Sequence) -> list[int]:
        """Compute its tokens anew, from what others hold of them. Returns the blocks that it alone held."""
        held = [
            block_id
            for block_id in sequence.blocks
            if self.pool.references(block_id) == 1 and not self.pool.is_findable(block_id)
        ]
        self._preempt(sequence)
        return held

    def finish(self, sequence: Sequence) -> None:
        """This output is over; its blocks are free at once."""
        assert sequence.status is not Status.FINISHED, sequence
        queue = self._running if sequence.status is Status.RUNNING else self._waiting
        queue.remove(sequence)
        self._release(sequence)
        sequence.status = Status.FINISHED
        self.progress += 1
        live = sequence.live
        live.sequences.remove(sequence)
        if not live.sequences:
            del self.live[live.key]
            self._share.leave(live.request.tenant)

    def hold_prompt(self, sequence: Sequence) -> None:
        """Its prompt's full blocks outlive it, for another engine; of a request's outputs the first brings them all."""
        if not self.held.of(sequence.live.key):
            full = min(sequence.num_computed, sequence.num_prompt) // self.limits.block_size
            self.held.hold(sequence.live.key, sequence.blocks[:full])

    def finish_all(self, live: LiveRequest) -> None:
        for sequence in list(live.sequences):
            self.finish(sequence)

    def unshared_blocks(self, live: LiveRequest) -> list[int]:
        """Blocks that nobody but this request's sequences can read, now or later."""
        owned = Counter(block_id for sequence in live.sequences for block_id in sequence.blocks)
        return sorted(
            block_id
            for block_id, count in owned.items()
            if self.pool.references(block_id) == count and not self.pool.is_findable(block_id)
        )

    def why_waiting(self, sequence: Sequence) -> WaitingReason:
        """As of the newest step. Safe to call from any thread."""
        return self._admissions.why(sequence)

    def check_integrity(self) -> None:
        """Every reference that the pool counts is a running sequence's or held; every sequence is in one queue."""
        self.pool.check_integrity()
        owners, use = self.held.references(), TenantUse()
        for sequence in self._running:
            assert sequence.status is Status.RUNNING, sequence
            use.add(sequence.tenant, slots=1, blocks=len(sequence.blocks))
            for block_id in sequence.blocks:
                owners[block_id] += 1
        assert owners == [self.pool.references(block_id) for block_id in range(self.pool.num_blocks)], owners
        assert (use.slots, use.blocks) == (self._use.slots, self._use.blocks), (use.slots, use.blocks)
        self._check_quotas()
        assert all(sequence.status is Status.WAITING for sequence in self._waiting), self._waiting
        queued = [*self._waiting, *self._running]
        assert {id(s) for s in queued} == {id(s) for live in self.live.values() for s in live.sequences}, queued
        for sequence in queued:
            sequence.check_integrity(self.limits.block_size)

    def _check_quotas(self) -> None:
        for tenant, slots in self._use.slots.items():
            limits, blocks = self.limits.tenants.of(tenant), self._use.blocks[tenant]
            assert limits.max_num_seqs is None or slots <= limits.max_num_seqs, (tenant, slots)
            assert limits.max_blocks is None or blocks <= limits.max_blocks, (tenant, blocks)

    def _order(self, sequence: Sequence) -> tuple[int, float, tuple[int, int, int]]:
        return (-sequence.priority, self._share.counter(sequence.tenant), sequence.arrival)

    def _grow(self, sequence: Sequence, num_blocks: int) -> None:
        sequence.blocks += self.pool.allocate(num_blocks)
        self._use.add(sequence.tenant, blocks=num_blocks)

    def _give_surplus_back(self, sequence: Sequence) -> None:
        surplus = sequence.blocks[self._blocks_for(len(sequence.token_ids)) :]
        if surplus:
            self.pool.release(surplus)
            del sequence.blocks[-len(surplus) :]
            self._use.add(sequence.tenant, blocks=-len(surplus))

    # ── decodes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_room_for_decodes(self) -> list[Sequence]:
        """A block for each newest token that needs one. Returns those that decode in this step."""
        decoding = [s for s in self._running if s.num_uncomputed == 1]
        for sequence in decoding:
            # An earlier sequence of this very loop may have preempted it.
            if sequence.status is Status.RUNNING:
                self._make_room(sequence)
        return decoding

    def _make_room(self, sequence: Sequence) -> None:
        """Whoever is last in order goes for it; perhaps itself."""
        if len(sequence.blocks) * self.limits.block_size >= len(sequence.token_ids):
            return
        while self.held and not self.pool.num_free:
            self.held.drop_oldest()  # sooner than anybody who still computes
        while (victim := self._in_the_way(sequence)) is not None:
            self._preempt(victim)
            if victim is sequence:
                return
        self._grow(sequence, 1)

    def _in_the_way(self, sequence: Sequence) -> Sequence | None:
        """Who must go before it may take one more block. The running are visited in order, so that the last of them,
        and the last of its tenant, has not been given room before this one."""
        if not self.pool.num_free:
            return self._running[-1]
        most = self.limits.tenants.of(sequence.tenant).max_blocks
        if most is not None and self._use.blocks[sequence.tenant] >= most:
            return next(other for other in reversed(self._running) if other.tenant == sequence.tenant)
        return None

    def _schedule_decodes(self, batch: Batch, decoding: list[Sequence]) -> None:
        for sequence in decoding:
            if sequence.status is Status.RUNNING:
                self._compute(batch, sequence, 1)

    def _look_ahead(self, batch: Batch) -> None:
        """Where it costs nobody anything, a block for the token after the one that a decode draws in this step."""
        for row in batch.scheduled:
            if row.count == 1 and row.samples:
                self.make_room_for_drafts(row.sequence, 1)

    def _compute(self, batch: Batch, sequence: Sequence, count: int) -> None:
        first = max(sequence.num_computed, sequence.num_reached)
        end = min(sequence.num_computed + count, sequence.num_given)
        self._share.charge(sequence.tenant, prompt=max(0, end - first))
        batch.add(sequence, count)

    # ── preemption ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_way(self) -> None:
        """Preempt those of lower priority that keep the first in line from running, when their going is enough.

        For one sequence a step: a step is short, and the others' turn comes with the next.
        """
        if not self._running:
            return
        tenants: set[str] = set()
        for sequence in islice(self._waiting.in_order(tenants), MAX_DEFERRED):
            if self._running[-1].priority >= sequence.priority:
                return
            prefix = known_prefix(sequence, self.pool, self.limits.block_size)
            if stands_back(sequence, len(prefix), self._running, self.limits.block_size):
                continue
            room, num_blocks = self._room(), self._blocks_for(len(sequence.token_ids))
            victims = choose_victims(room, self._running, sequence, prefix, num_blocks)
            if victims is None and room.shortage(sequence, prefix, num_blocks) in OF_TENANT:
                tenants.add(sequence.tenant)
                continue
            for victim in victims or ():
                self._preempt(victim)
            return

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        sequence.status, sequence.preempted = Status.WAITING, True
        self._waiting.add(sequence)
        sequence.live.preemptions += 1
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self._use.add(sequence.tenant, slots=-1, blocks=-len(sequence.blocks))
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_cached = sequence.num_stored = 0
        sequence.pooled = None

    # ── prefills ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _schedule_prefills(self, batch: Batch) -> None:
        for sequence in list(self._running):
            if sequence.num_uncomputed == 1:
                continue
            if (self._waiting.highest_priority or 0) > sequence.priority:
                self._admit(batch, above=sequence.priority)
            if batch.num_left:
                self._compute(batch, sequence, min(sequence.num_uncomputed, batch.num_left))

    # ── admissions ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _admit(self, batch: Batch, above: int | None = None) -> None:
        """Let waiting sequences run, in order: all of them, or those of a priority above one."""
        admissions = self._admissions
        for sequence in self._waiting.in_order(admissions.tenants):
            if admissions.end is not None or (above is not None and sequence.priority <= above):
                return
            if sequence not in admissions.deferred:
                admissions.note(sequence, self._start_or_say_why_not(sequence, batch))

    def _start_or_say_why_not(self, sequence: Sequence, batch: Batch) -> WaitingReason | None:
        if not batch.num_left:
            return WaitingReason.NO_TOKENS
        if self.num_running == self.limits.max_num_seqs:
            return WaitingReason.NO_SLOT
        prefix = known_prefix(sequence, self.pool, self.limits.block_size, self._loading)
        if stands_back(sequence, len(prefix), self._running, self.limits.block_size):
            sequence.deferred_steps += 1
            return WaitingReason.SHARED_PREFIX
        num_blocks = self._blocks_for(len(sequence.token_ids))
        while self.held and not self._running and self._room().lacks_blocks(prefix, num_blocks):
            self.held.drop_oldest()  # nobody runs whose end would make room
        reason = self._room().shortage(sequence, prefix, num_blocks)
        if reason is None:
            self._start(sequence, prefix, batch)
            self._compute(batch, sequence, min(sequence.num_uncomputed, batch.num_left))
        return reason

    def _room(self) -> Room:
        tenants, most = self.limits.tenants, self.limits.max_num_seqs
        return Room(self.pool, tenants, self._use, max_num_seqs=most, num_running=self.num_running)

    def _start(self, sequence: Sequence, prefix: list[int], batch: Batch) -> None:
        self.pool.share(prefix)
        private = self.pool.allocate(self._blocks_for(len(sequence.token_ids)) - len(prefix))
        sequence.blocks = [*prefix, *private]
        loads = list(self._loads(sequence, len(prefix)))
        batch.loads += loads
        self._loading.update(zip(sequence.block_hashes[len(prefix) :], (load.block_id for load in loads), strict=False))
        sequence.num_computed = sequence.num_cached = (len(prefix) + len(loads)) * self.limits.block_size
        # One that another loads in this step has its hash only after it; whoever is first then makes it findable.
        sequence.num_stored = sum(1 for _ in takewhile(self.pool.is_findable, prefix))
        sequence.status, sequence.preempted = Status.RUNNING, False
        self._waiting.remove(sequence)
        self._running.append(sequence)
        self._use.add(sequence.tenant, slots=1, blocks=len(sequence.blocks))
        self._note_first_start(sequence, len(prefix), len(loads))

    def _loads(self, sequence: Sequence, num_known: int) -> Iterator[BlockLoad]:
        """The stored blocks that go on where its known prefix ends."""
        live, limit = sequence.live, (len(sequence.token_ids) - 1) // self.limits.block_size
        first = live.first_stored_block
        if not first <= num_known:
            return
        stored = live.stored_blocks[num_known - first : limit - first]
        for index, payload in enumerate(stored[: self._count_usable(stored)], num_known):
            yield BlockLoad(sequence.blocks[index], payload)

    def _note_first_start(self, sequence: Sequence, num_known: int, num_loaded: int) -> None:
        live = sequence.live
        live.stored_blocks = []  # they are in the pool now, or were not needed
        if not live.started:
            live.started = True
            live.cached_prompt_tokens = min(num_known * self.limits.block_size, sequence.num_prompt)
            live.loaded_prompt_tokens = num_loaded * self.limits.block_size

    # ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _store_full_blocks(self, sequence: Sequence, computed_from: int) -> list[NewBlock]:
        full = min(sequence.num_computed // self.limits.block_size, len(sequence.block_hashes))
        new = []
        for index in range(sequence.num_stored, full):
            parent = sequence.parent_hash(index) if index else b""
            is_new = self.pool.store(sequence.blocks[index], sequence.block_hashes[index], parent)
            # A block that was loaded came from the store; only what was computed here is news to it.
            if is_new and (index + 1) * self.limits.block_size > computed_from:
                request = sequence.live.request
                new.append(
                    NewBlock(
                        sequence.blocks[index],
                        sequence.block_hashes[index],
                        parent,
                        request.cache_scope,
                        request.tenant,
                    )
                )
        sequence.num_stored = max(sequence.num_stored, full)
        return new

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.limits.block_size)
