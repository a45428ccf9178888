"""Waiting, running, preempted → Batch. Pure: no torch, no I/O, no clock.

Every step has one budget of tokens (`max_batched_tokens`), spent in this order:

    1. decodes     running sequences with one token to compute, so that a long prompt never stalls the others
    2. prefills    running sequences in the middle of their tokens, in chunks
    3. admissions  waiting sequences by priority, then first come, first served, while blocks and slots are free

When a decode needs a block and none is free, the running sequence of the lowest priority, newest first, is preempted:
it gives its blocks back and waits again. Its tokens stay; they are computed anew when it returns, from whatever the
prefix index still holds. A running sequence owns at least its last block alone, so that a preemption always frees one.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from weir_executor.engine import PoolingKind
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.sequence import LiveRequest, Sequence, Status, new_sequences

# A sequence stands back for a block under way at most this long. In practice the wait ends when the block is done or
# its owner gone; the bound makes that certain. At 512 tokens a step it covers a prompt of 128 Ki tokens.
_MAX_DEFERRED_STEPS = 256
# Sequences that stand back are looked at again in every step: more than these would cost more than they save.
_MAX_DEFERRED_PER_STEP = 64


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_num_seqs: int
    max_batched_tokens: int
    block_size: int

    def __post_init__(self) -> None:
        assert self.max_num_seqs > 0, self
        assert self.block_size > 0, self
        assert self.max_batched_tokens >= self.max_num_seqs, "every running sequence must be able to decode in one step"


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`count` tokens of one sequence, from index `first`, to be computed in this step.

    The last of them may be drafts: guesses at what comes after the sequence's own tokens.
    """

    sequence: Sequence
    first: int
    count: int
    draft_token_ids: tuple[int, ...] = ()

    @property
    def blocks(self) -> list[int]:
        return self.sequence.blocks

    @property
    def num_own(self) -> int:
        """Of the tokens, those that are the sequence's own."""
        return self.count - len(self.draft_token_ids)

    @property
    def reaches_end(self) -> bool:
        """Whether the sequence's last token is among these."""
        return self.first + self.num_own == len(self.sequence.token_ids)

    @property
    def samples(self) -> bool:
        """Whether the logits of the sequence's last token are to give the next one."""
        return self.reaches_end and self.sequence.pooling is None

    @property
    def num_wanted(self) -> int:
        """The last so many tokens' logits are wanted: each checks the draft after it, or gives a new token."""
        return 1 + len(self.draft_token_ids) if self.samples else 0

    @property
    def num_pooled(self) -> int:
        """The last so many tokens' hidden states are wanted, for the sequence's vector."""
        pooling = self.sequence.pooling
        if pooling is None:
            return 0
        return self.count if pooling.kind is PoolingKind.MEAN else int(self.reaches_end)

    @property
    def token_ids(self) -> list[int]:
        return [*self.sequence.token_ids[self.first : self.first + self.num_own], *self.draft_token_ids]


@dataclass(frozen=True, slots=True)
class BlockLoad:
    """A stored payload to be written into a block before the step computes anything."""

    block_id: int
    payload: bytes | memoryview


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A block that this step computed to its end and made findable."""

    block_id: int
    block_hash: bytes
    parent_block_hash: bytes  # empty for a chain's first block
    cache_scope: bytes  # of the request that computed it


@dataclass(slots=True)
class Batch:
    """What one step computes: decodes first, then prefill chunks."""

    scheduled: list[Scheduled] = field(default_factory=list)
    loads: list[BlockLoad] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, sequence: Sequence, count: int) -> None:
        assert 0 < count <= sequence.num_uncomputed, (count, sequence)
        self.scheduled.append(Scheduled(sequence, sequence.num_computed, count))
        self.num_tokens += count


class Scheduler:
    """Decides what the next step computes, and owns every sequence and its blocks until it ends."""

    def __init__(self, pool: BlockPool, limits: SchedulerLimits) -> None:
        self.pool, self.limits = pool, limits
        self.live: dict[int, LiveRequest] = {}
        self.preemptions = 0
        self.progress = 0  # grows with each token that is computed for the first time, and each output that ends
        self._waiting: list[Sequence] = []  # sorted by `order`
        self._running: list[Sequence] = []  # sorted by `order`

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting_requests(self) -> int:
        """Requests of which nothing runs."""
        running = {sequence.live.key for sequence in self._running}
        return len({sequence.live.key for sequence in self._waiting} - running)

    @property
    def outstanding_tokens(self) -> int:
        return sum(sequence.num_outstanding for sequence in (*self._running, *self._waiting))

    def add(self, live: LiveRequest) -> None:
        """Take a request in. Its sequences wait from now on."""
        assert live.key not in self.live, live.key
        live.sequences = new_sequences(live, self.limits.block_size)
        self.live[live.key] = live
        for sequence in live.sequences:
            insort(self._waiting, sequence, key=_order)

    def schedule(self) -> Batch:
        """The next step. Changes who runs and who owns which block; computes nothing."""
        batch = Batch()
        self._schedule_decodes(batch)
        self._schedule_prefills(batch)
        self._admit(batch)
        assert batch.scheduled or not self.live, "there is work and nothing can be scheduled"
        return batch

    def advance(self, scheduled: Scheduled, new_token_ids: Items[int] = ()) -> list[NewBlock]:
        """Note that these tokens' KV is written, and what was drawn after them.

        Of several new tokens all but the last were drafts, so that their KV is written too; room that was made for
        drafts and is not needed goes back. Returns the blocks that became full and findable.
        """
        sequence = scheduled.sequence
        sequence.token_ids += new_token_ids
        sequence.hash_full_blocks(self.limits.block_size)
        sequence.num_computed += scheduled.num_own + max(0, len(new_token_ids) - 1)
        self.progress += max(0, sequence.num_computed - sequence.num_reached)
        sequence.num_reached = max(sequence.num_reached, sequence.num_computed)
        self._give_surplus_back(sequence)
        return self._store_full_blocks(sequence, computed_from=scheduled.first)

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

    def finish_all(self, live: LiveRequest) -> None:
        for sequence in list(live.sequences):
            self.finish(sequence)

    def unshared_blocks(self, live: LiveRequest) -> list[int]:
        """Blocks that nobody but this request's sequences can read, now or later."""
        owned = {block_id for sequence in live.sequences for block_id in sequence.blocks}
        return sorted(block_id for block_id in owned if not self.pool.is_findable(block_id))

    def check_integrity(self) -> None:
        """Every reference the pool counts belongs to a running sequence, and every sequence to one queue."""
        self.pool.check_integrity()
        owners = [0] * self.pool.num_blocks
        for sequence in self._running:
            assert sequence.status is Status.RUNNING, sequence
            for block_id in sequence.blocks:
                owners[block_id] += 1
        assert owners == [self.pool.references(block_id) for block_id in range(self.pool.num_blocks)], owners
        assert all(sequence.status is Status.WAITING for sequence in self._waiting), self._waiting
        queued = [*self._waiting, *self._running]
        assert {id(s) for s in queued} == {id(s) for live in self.live.values() for s in live.sequences}, queued
        for sequence in queued:
            sequence.check_integrity(self.limits.block_size)

    def _give_surplus_back(self, sequence: Sequence) -> None:
        needed = self._blocks_for(len(sequence.token_ids))
        self.pool.release(sequence.blocks[needed:])
        del sequence.blocks[needed:]

    # ── decodes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _schedule_decodes(self, batch: Batch) -> None:
        for sequence in [s for s in self._running if s.num_uncomputed == 1]:
            # An earlier sequence of this very loop may have preempted it.
            if sequence.status is Status.RUNNING and self._make_room(sequence):
                batch.add(sequence, 1)

    def _make_room(self, sequence: Sequence) -> bool:
        """A block for its newest token, if it needs one. False when the sequence had to go itself."""
        if len(sequence.blocks) * self.limits.block_size >= len(sequence.token_ids):
            return True
        while not self.pool.num_free:
            # The running are sorted by `order` and scheduled in it, so the last was not scheduled before this one.
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.blocks += self.pool.allocate(1)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        sequence.status = Status.WAITING
        insort(self._waiting, sequence, key=_order)
        sequence.live.preemptions += 1
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_cached = sequence.num_stored = 0
        sequence.pooled = None

    # ── prefills ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _schedule_prefills(self, batch: Batch) -> None:
        for sequence in self._running:
            left = self.limits.max_batched_tokens - batch.num_tokens
            if left and sequence.num_uncomputed > 1:
                batch.add(sequence, min(sequence.num_uncomputed, left))

    # ── admissions ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _admit(self, batch: Batch) -> None:
        deferred = 0
        for sequence in list(self._waiting):
            left = self.limits.max_batched_tokens - batch.num_tokens
            if not left or self.num_running == self.limits.max_num_seqs or deferred == _MAX_DEFERRED_PER_STEP:
                return
            prefix = self._known_prefix(sequence)
            if self._stands_back(sequence, len(prefix)):
                sequence.deferred_steps += 1
                deferred += 1
                continue
            # Whoever is first in line and does not fit keeps the others waiting: a long prompt must not starve.
            if not self._fits(sequence, prefix):
                return
            self._start(sequence, prefix, batch)
            batch.add(sequence, min(sequence.num_uncomputed, left))

    def _known_prefix(self, sequence: Sequence) -> list[int]:
        """Full blocks that hold the beginning of its tokens: by hash, or owned by an output of the same prompt.

        At least one token is always left to compute, for its logits give the next one.
        """
        limit = (len(sequence.token_ids) - 1) // self.limits.block_size
        best = self.pool.match(sequence.block_hashes[:limit])
        for sibling in self._running_siblings(sequence):
            shared = min(limit, min(sibling.num_computed, sibling.num_prompt) // self.limits.block_size)
            best = sibling.blocks[:shared] if shared > len(best) else best
        return best

    def _stands_back(self, sequence: Sequence, num_known: int) -> bool:
        """Whether another sequence computes its next block right now, so that waiting is cheaper than computing it."""
        block_size = self.limits.block_size
        if sequence.deferred_steps >= _MAX_DEFERRED_STEPS or num_known >= (len(sequence.token_ids) - 1) // block_size:
            return False
        end = (num_known + 1) * block_size
        if end <= sequence.num_prompt and any(s.num_computed < end for s in self._running_siblings(sequence)):
            return True
        # A hash names its whole prefix, so equal hashes stand at equal places.
        wanted = sequence.block_hashes[num_known] if num_known < len(sequence.block_hashes) else None
        return wanted is not None and any(
            len(s.block_hashes) > num_known and s.block_hashes[num_known] == wanted and s.num_computed < end
            for s in self._running
        )

    def _running_siblings(self, sequence: Sequence) -> Iterator[Sequence]:
        return (s for s in sequence.live.sequences if s.status is Status.RUNNING)

    def _fits(self, sequence: Sequence, prefix: list[int]) -> bool:
        """Room for all its tokens, and one block in hand per running sequence, lest it is preempted at once."""
        wanted = self._blocks_for(len(sequence.token_ids)) - len(prefix)
        revived = sum(self.pool.is_reusable(block_id) for block_id in prefix)
        return wanted + revived + self.num_running <= self.pool.num_free or not self._running

    def _start(self, sequence: Sequence, prefix: list[int], batch: Batch) -> None:
        self.pool.share(prefix)
        private = self.pool.allocate(self._blocks_for(len(sequence.token_ids)) - len(prefix))
        sequence.blocks = [*prefix, *private]
        loads = list(self._loads(sequence, len(prefix)))
        batch.loads += loads
        sequence.num_computed = sequence.num_cached = (len(prefix) + len(loads)) * self.limits.block_size
        sequence.num_stored = len(prefix)
        sequence.status = Status.RUNNING
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_order)
        self._note_first_start(sequence, len(prefix), len(loads))

    def _loads(self, sequence: Sequence, num_known: int) -> Iterator[BlockLoad]:
        """The stored blocks that go on where its known prefix ends."""
        live, limit = sequence.live, (len(sequence.token_ids) - 1) // self.limits.block_size
        first = live.first_stored_block
        if not first <= num_known:
            return
        for index in range(num_known, min(limit, first + len(live.stored_blocks))):
            yield BlockLoad(sequence.blocks[index], live.stored_blocks[index - first])

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
                scope = sequence.live.request.cache_scope
                new.append(NewBlock(sequence.blocks[index], sequence.block_hashes[index], parent, scope))
        sequence.num_stored = max(sequence.num_stored, full)
        return new

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.limits.block_size)


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
