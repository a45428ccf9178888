"""Room in a local tier: what a new block takes is there before it is reserved, or others go for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from weir_chassis.leases import LeaseLedger
from weir_kvstore.block import Block
from weir_kvstore.growing import Growing
from weir_kvstore.index import Index
from weir_kvstore.record import Record
from weir_kvstore.rules import Rules
from weir_kvstore.tenants import Books, Need, make_room
from weir_kvstore.tier import Slots

# Slots of several sizes may have room, and none of the right size: so often victims are looked for again.
_CLAIM_TRIES: Final = 8


class Room:
    """Who goes, and that they go for nothing less: the index's and the policies' word, and the slots' claim."""

    def __init__(
        self,
        index: Index,
        slots: Slots,
        growing: Growing,
        ledger: LeaseLedger,
        rules: Rules,
        *,
        evict: Callable[[Sequence[Block]], None],
    ) -> None:
        """`evict` hides these at once, and frees what nobody refers to."""
        self._index, self._slots, self._growing, self._ledger = index, slots, growing, ledger
        self.rules = rules
        self._evict = evict

    @property
    def capacity_bytes(self) -> int:
        limit = self.rules.max_bytes
        return self._slots.capacity_bytes if limit is None else min(limit, self._slots.capacity_bytes)

    def reserve(self, record: Record, tier: str) -> Block | None:
        """A block that nobody sees yet, its room claimed; None when no room can be made."""
        if not self._may_stage(record.size_bytes) or not self._make_room(record):
            return None
        block = self._index.reserve(record, tier)
        if self._claim(block):
            self._growing.reserved(block)
            return block
        self._index.discard(block)
        return None

    def discard(self, block: Block) -> None:
        """Ends a reservation."""
        self._growing.discarded(block)
        self._index.discard(block)
        self._slots.free(block.block_id)

    def shrink(self) -> None:
        """What does not fit the rules goes, as far as nobody refers to it; the rest with a later sweep."""
        self._growing.let_go()
        evictable = self._index.evictable_bytes()
        over = self.rules.quotas.over(self._index.tenant_bytes)
        reach = (take._replace(size_bytes=min(take.size_bytes, evictable.get(take.tenant, 0))) for take in over)
        self._evict(self._index.victims([take for take in reach if take.size_bytes > 0]) or [])
        lacking = min(self._slots.used_bytes - self.capacity_bytes, sum(self._index.evictable_bytes().values()))
        if lacking > 0:
            self._evict(self._give_way(Need("", 0, lacking)) or [])

    def _may_stage(self, size_bytes: int) -> bool:
        limit = self.rules.max_staged_bytes
        return limit is None or size_bytes <= limit - self._index.reserved_bytes

    def _make_room(self, record: Record) -> bool:
        victims = self._victims(record)
        if victims is None:
            # Leases that lapsed since the last sweep hold blocks back for nobody, and other chains may grow no more.
            self._ledger.expire()
            self._growing.keep_only(record)
            victims = self._victims(record)
        if victims is None:
            return False
        self._evict(victims)
        return True

    def _claim(self, block: Block) -> bool:
        """Takes the room, which may have to be made in the right place."""
        for _ in range(_CLAIM_TRIES):
            if self._slots.claim(block.block_id, block.size_bytes):
                return True
            need = Need(block.tenant, 0, block.size_bytes, 1)
            self._growing.hold(block.record)
            victims = self._give_way(need)
            if victims is None:
                self._growing.keep_only(block.record)
                victims = self._give_way(need)
            if victims is None:
                return False
            self._evict(victims)
        return False

    def _victims(self, record: Record) -> list[Block] | None:
        """Whoever has to go for it; the tenant's quota is charged with it before a byte is claimed."""
        lacking_bytes = self._slots.used_bytes + record.size_bytes - self.capacity_bytes
        lacking_blocks = len(self._index) + 1 - self.rules.max_blocks
        has_quota = self.rules.quotas.of(record.tenant).max_bytes is not None
        if lacking_bytes <= 0 and lacking_blocks <= 0 and not has_quota:
            return []
        self._growing.hold(record)
        return self._give_way(Need(record.tenant, record.size_bytes, lacking_bytes, lacking_blocks))

    def _give_way(self, need: Need) -> list[Block] | None:
        books = Books(self.capacity_bytes, self._index.tenant_bytes, self._index.evictable_bytes())
        takes = make_room(self.rules.quotas, books, need)
        return None if takes is None else self._index.victims(takes)
