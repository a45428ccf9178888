"""The blocks that running sequences own, and what of them counts against whose quota. Pure.

A sequence that runs owns the blocks of the prefix it began with, which others may own too, and after them at least one
that is its alone. One that does not run owns none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Items

from weir_executor.paged.batch import NewBlock
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.sequence import Sequence
from weir_executor.paged.tenants import Tenants, TenantUse


class OwnedBlocks:
    """Takes from the pool, and gives back to it, what `Sequence.blocks` says. The caller has looked for room."""

    def __init__(self, pool: BlockPool, tenants: Tenants, block_size: int) -> None:
        self._pool, self._tenants, self._block_size = pool, tenants, block_size
        self.use = TenantUse()

    def num_for(self, num_tokens: int) -> int:
        """Blocks for so many tokens; the last may be partial."""
        return -(-num_tokens // self._block_size)

    def begin(self, sequence: Sequence, prefix: Items[int]) -> None:
        """It runs from now on, in a slot: on a known prefix, and on blocks of its own for the rest of its tokens."""
        self._pool.share(prefix)
        private = self._pool.allocate(self.num_for(len(sequence.token_ids)) - len(prefix))
        sequence.blocks = [*prefix, *private]
        self.use.add(sequence.tenant, slots=1, blocks=len(sequence.blocks))

    def end(self, sequence: Sequence) -> None:
        """It runs no more."""
        self.use.add(sequence.tenant, slots=-1, blocks=-len(sequence.blocks))
        self._pool.release(sequence.blocks)
        sequence.blocks = []

    def grow(self, sequence: Sequence, num_blocks: int) -> None:
        sequence.blocks += self._pool.allocate(num_blocks)
        self.use.add(sequence.tenant, blocks=num_blocks)

    def give_surplus_back(self, sequence: Sequence) -> None:
        """Room for tokens that did not come."""
        surplus = sequence.blocks[self.num_for(len(sequence.token_ids)) :]
        if surplus:
            self._pool.release(surplus)
            del sequence.blocks[-len(surplus) :]
            self.use.add(sequence.tenant, blocks=-len(surplus))

    def store_full(self, sequence: Sequence, computed_from: int) -> list[NewBlock]:
        """Make its full, written blocks findable.

        Returns those that are news to the store: not the ones that came from there, which end before the token at
        `computed_from`.
        """
        full = min(sequence.num_computed // self._block_size, len(sequence.block_hashes))
        request, new = sequence.live.request, []
        for index in range(sequence.num_stored, full):
            block_id, block_hash = sequence.blocks[index], sequence.block_hashes[index]
            parent = sequence.parent_hash(index) if index else b""
            is_new = self._pool.store(block_id, block_hash, parent)
            if is_new and (index + 1) * self._block_size > computed_from:
                new.append(NewBlock(block_id, block_hash, parent, request.cache_scope, request.tenant))
        sequence.num_stored = max(sequence.num_stored, full)
        return new

    def unshared(self, sequences: Iterable[Sequence]) -> list[int]:
        """Blocks that nobody but these sequences can read, now or later."""
        owned = Counter(block_id for sequence in sequences for block_id in sequence.blocks)
        return sorted(
            block_id
            for block_id, count in owned.items()
            if self._pool.references(block_id) == count and not self._pool.is_findable(block_id)
        )

    def check_integrity(self, running: Iterable[Sequence], held: Items[int]) -> None:
        """Every reference that the pool counts is a running sequence's, or `held`: so many of each block, by its id."""
        self._pool.check_integrity()
        owners, use = list(held), TenantUse()
        for sequence in running:
            use.add(sequence.tenant, slots=1, blocks=len(sequence.blocks))
            for block_id in sequence.blocks:
                owners[block_id] += 1
        assert owners == [self._pool.references(block_id) for block_id in range(self._pool.num_blocks)], owners
        assert (use.slots, use.blocks) == (self.use.slots, self.use.blocks), (use.slots, use.blocks)
        self._check_quotas()

    def _check_quotas(self) -> None:
        for tenant, slots in self.use.slots.items():
            limits, blocks = self._tenants.of(tenant), self.use.blocks[tenant]
            assert limits.max_num_seqs is None or slots <= limits.max_num_seqs, (tenant, slots)
            assert limits.max_blocks is None or blocks <= limits.max_blocks, (tenant, blocks)
