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

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import islice, takewhile

from weir_executor.engine import WaitingReason
from weir_executor.paged.admissions import MAX_DEFERRED, Admissions
from weir_executor.paged.batch import Batch, NewBlock, Scheduled
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.held import HeldBlocks
from weir_executor.paged.known_prefix import known_prefix, stands_back
from weir_executor.paged.owned_blocks import OwnedBlocks
from weir_executor.paged.prefix_loads import CountUsable, PrefixLoads
from weir_executor.paged.room import OF_TENANT, Room, choose_victims
from weir_executor.paged.sequence import LiveRequest, Sequence, Status, new_sequences
from weir_executor.paged.tenants import FairShare, Tenants
from weir_executor.paged.waiting import WaitingQueue


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
        self.pool, self.limits, self.held = pool, limits, HeldBlocks(pool)
        self.live: dict[int, LiveRequest] = {}
        self.preemptions = 0
        self.progress = 0  # grows with each token that is computed for the first time, and each output that ends
        self._share = FairShare(limits.tenants)
        self._owned = OwnedBlocks(pool, limits.tenants, limits.block_size)
        self._loads = PrefixLoads(count_usable, limits.block_size)
        self._waiting = WaitingQueue(self._share)
        self._running: list[Sequence] = []  # in order, as of the step's begin
        self._admissions = Admissions()  # of the newest step

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
        self._loads.begin_step()
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
        self._owned.give_surplus_back(sequence)
        return self._owned.store_full(sequence, computed_from=scheduled.first)

    def make_room_for_drafts(self, sequence: Sequence, most: int) -> int:
        """Blocks for up to `most` drafts after a sequence's tokens, of those that are free, and for how many there is.

        One block stays in hand for each running sequence: no draft causes a preemption. `advance` takes back the rest.
        """
        missing = self._owned.num_for(len(sequence.token_ids) + most) - len(sequence.blocks)
        self._owned.grow(sequence, max(0, min(missing, self._room().spare_blocks(sequence.tenant))))
        return max(0, min(most, len(sequence.blocks) * self.limits.block_size - len(sequence.token_ids)))

    def restart(self, sequence: Sequence) -> list[int]:
        """Compute its tokens anew, from what others hold of them. Returns the blocks that it alone held."""
        unshared = self._owned.unshared([sequence])
        self._preempt(sequence)
        return unshared

    def finish(self, sequence: Sequence) -> None:
        """This output is over; its blocks are free at once."""
        assert sequence.status is not Status.FINISHED, sequence
        if sequence.status is Status.RUNNING:
            self._stop(sequence)
        else:
            self._waiting.remove(sequence)
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
        return self._owned.unshared(live.sequences)

    def why_waiting(self, sequence: Sequence) -> WaitingReason:
        """As of the newest step. Safe to call from any thread."""
        return self._admissions.why(sequence)

    def check_integrity(self) -> None:
        """Every reference that the pool counts is a running sequence's or held; every sequence is in one queue."""
        self._owned.check_integrity(self._running, self.held.references())
        assert all(sequence.status is Status.RUNNING for sequence in self._running), self._running
        assert all(sequence.status is Status.WAITING for sequence in self._waiting), self._waiting
        queued = [*self._waiting, *self._running]
        assert {id(s) for s in queued} == {id(s) for live in self.live.values() for s in live.sequences}, queued
        for sequence in queued:
            sequence.check_integrity(self.limits.block_size)

    def _order(self, sequence: Sequence) -> tuple[int, float, tuple[int, int, int]]:
        return (-sequence.priority, self._share.counter(sequence.tenant), sequence.arrival)

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
        self._owned.grow(sequence, 1)

    def _in_the_way(self, sequence: Sequence) -> Sequence | None:
        """Who must go before it may take one more block. The running are visited in order, so that the last of them,
        and the last of its tenant, has not been given room before this one."""
        if not self.pool.num_free:
            return self._running[-1]
        most = self.limits.tenants.of(sequence.tenant).max_blocks
        if most is not None and self._owned.use.blocks[sequence.tenant] >= most:
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
            room, num_blocks = self._room(), self._owned.num_for(len(sequence.token_ids))
            victims = choose_victims(room, self._running, sequence, prefix, num_blocks)
            if victims is None and room.shortage(sequence, prefix, num_blocks) in OF_TENANT:
                tenants.add(sequence.tenant)
                continue
            for victim in victims or ():
                self._preempt(victim)
            return

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.status, sequence.preempted = Status.WAITING, True
        self._waiting.add(sequence)
        sequence.live.preemptions += 1
        self.preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        """It runs no more. What it had computed is in blocks that are not its own now."""
        self._running.remove(sequence)
        self._owned.end(sequence)
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
        prefix = known_prefix(sequence, self.pool, self.limits.block_size, self._loads.by_hash)
        if stands_back(sequence, len(prefix), self._running, self.limits.block_size):
            sequence.deferred_steps += 1
            return WaitingReason.SHARED_PREFIX
        num_blocks = self._owned.num_for(len(sequence.token_ids))
        while self.held and not self._running and self._room().lacks_blocks(prefix, num_blocks):
            self.held.drop_oldest()  # nobody runs whose end would make room
        reason = self._room().shortage(sequence, prefix, num_blocks)
        if reason is None:
            self._start(sequence, prefix, batch)
            self._compute(batch, sequence, min(sequence.num_uncomputed, batch.num_left))
        return reason

    def _room(self) -> Room:
        tenants, most = self.limits.tenants, self.limits.max_num_seqs
        return Room(self.pool, tenants, self._owned.use, max_num_seqs=most, num_running=self.num_running)

    def _start(self, sequence: Sequence, prefix: list[int], batch: Batch) -> None:
        self._owned.begin(sequence, prefix)
        loads = self._loads.add(sequence, len(prefix))
        batch.loads += loads
        sequence.num_computed = sequence.num_cached = (len(prefix) + len(loads)) * self.limits.block_size
        # One that another loads in this step has its hash only after it; whoever is first then makes it findable.
        sequence.num_stored = sum(1 for _ in takewhile(self.pool.is_findable, prefix))
        sequence.status, sequence.preempted = Status.RUNNING, False
        self._waiting.remove(sequence)
        self._running.append(sequence)
        self._note_first_start(sequence, len(prefix), len(loads))

    def _note_first_start(self, sequence: Sequence, num_known: int, num_loaded: int) -> None:
        live = sequence.live
        live.stored_blocks = []  # they are in the pool now, or were not needed
        if not live.started:
            live.started = True
            live.cached_prompt_tokens = min(num_known * self.limits.block_size, sequence.num_prompt)
            live.loaded_prompt_tokens = num_loaded * self.limits.block_size
