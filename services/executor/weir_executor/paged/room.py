"""Whether a waiting sequence fits, and who would have to go for it. Pure: it looks, and changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items

from weir_executor.engine import WaitingReason
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.sequence import Sequence
from weir_executor.paged.tenants import Tenants, TenantUse

# What only the tenant itself is short of: others may pass.
OF_TENANT = frozenset({WaitingReason.TENANT_SLOTS, WaitingReason.TENANT_BLOCKS})


class Room:
    """Slots and blocks as they are, or as they would be `without` some of the running."""

    def __init__(self, pool: BlockPool, tenants: Tenants, use: TenantUse, *, max_num_seqs: int, num_running: int):
        self._pool, self._tenants, self._use = pool, tenants, use
        self._max_num_seqs, self._num_running, self._num_free = max_num_seqs, num_running, pool.num_free
        self._given_back: Counter[int] = Counter()  # references, by block
        self._gone: list[Sequence] = []

    def without(self, sequence: Sequence) -> None:
        """As if this one, which runs, were preempted."""
        self._gone.append(sequence)
        self._given_back.update(sequence.blocks)
        self._num_running -= 1
        self._num_free += sum(self._is_unowned(block_id) for block_id in sequence.blocks)

    def with_again(self, sequence: Sequence) -> None:
        """As if it ran after all."""
        self._num_free -= sum(self._is_unowned(block_id) for block_id in sequence.blocks)
        self._num_running += 1
        self._given_back.subtract(sequence.blocks)
        self._gone.remove(sequence)

    def shortage(self, sequence: Sequence, prefix: Items[int], num_blocks: int) -> WaitingReason | None:
        """What it is short of, if it needs `num_blocks`; None: it fits. `prefix` are blocks that hold its beginning."""
        return self._tenants_shortage(sequence, num_blocks) or self._own_shortage(prefix, num_blocks)

    def lacks_blocks(self, prefix: Items[int], num_blocks: int) -> bool:
        """Whether fewer are free than it takes beside the `prefix`, with one in hand for each that runs, lest one is
        preempted at once."""
        revived = sum(self._is_unowned(block_id) for block_id in prefix)
        return num_blocks - len(prefix) + revived + self._num_running > self._num_free

    def spare_blocks(self, tenant: str) -> int:
        """What is left when each that runs, and each of the tenant's within its quota, has one block in hand."""
        spare, most = self._num_free - self._num_running, self._tenants.of(tenant).max_blocks
        return spare if most is None else min(spare, most - self._use.blocks[tenant] - self._use.slots[tenant])

    def _own_shortage(self, prefix: Items[int], num_blocks: int) -> WaitingReason | None:
        if self._num_running >= self._max_num_seqs:
            return WaitingReason.NO_SLOT
        return WaitingReason.NO_BLOCKS if self._num_running and self.lacks_blocks(prefix, num_blocks) else None

    def _tenants_shortage(self, sequence: Sequence, num_blocks: int) -> WaitingReason | None:
        limits, gone = self._tenants.of(sequence.tenant), [s for s in self._gone if s.tenant == sequence.tenant]
        slots = self._use.slots[sequence.tenant] - len(gone)
        if limits.max_num_seqs is not None and slots >= limits.max_num_seqs:
            return WaitingReason.TENANT_SLOTS
        held = self._use.blocks[sequence.tenant] - sum(len(s.blocks) for s in gone)
        if limits.max_blocks is not None and slots and held + num_blocks + slots > limits.max_blocks:
            return WaitingReason.TENANT_BLOCKS
        return None

    def _is_unowned(self, block_id: int) -> bool:
        return self._pool.references(block_id) == self._given_back[block_id]


def choose_victims(
    room: Room, running: Items[Sequence], sequence: Sequence, prefix: Items[int], num_blocks: int
) -> list[Sequence] | None:
    """Who of the running, all of lower priority, must go for this one to fit: the last in order first, and nobody in
    vain. None when it would not fit without all of them. `room` is left as it would be without them."""
    candidates = [other for other in reversed(running) if other.priority < sequence.priority]
    victims = []
    while (short_of := room.shortage(sequence, prefix, num_blocks)) is not None:
        useful = (s for s in candidates if short_of not in OF_TENANT or s.tenant == sequence.tenant)
        victim = next(useful, None)
        if victim is None:
            return None
        candidates.remove(victim)
        victims.append(victim)
        room.without(victim)
    for victim in victims[-2::-1]:  # without the last one it did not fit
        room.with_again(victim)
        if room.shortage(sequence, prefix, num_blocks) is None:
            victims.remove(victim)
        else:
            room.without(victim)
    return victims
