"""The index and the tier together: what a request does to both, in one step each.

Everything here runs on one event loop and never waits, so no request ever sees a half of another's step. Only `remove`
takes turns, for it may have a million blocks to hide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from weir_chassis.leases import LeaseLedger
from weir_kvstore.events import TierEvents
from weir_kvstore.index import Block, Index, State
from weir_kvstore.leases import ReadLeases
from weir_kvstore.record import Address
from weir_kvstore.tier import Counters, Slots, TierReport

TIER: Final = "ram"
# Hidden in one turn of the event loop, some 2 µs each, so that the others wait a few milliseconds at most.
_HIDDEN_AT_ONCE: Final = 2048


@dataclass(frozen=True, slots=True)
class Match:
    matched_blocks: int  # leading blocks, those skipped among them
    lease_id: str | None = None
    leased_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What this store may hold besides its tier's bytes."""

    max_blocks: int  # records in the index, some 500 bytes each: payloads may be tiny
    max_staged_bytes: int  # of all open puts together: what is not committed may push out no more than this
    max_live_leases: int


class BlockStore:
    """Blocks by their address; leased blocks stay."""

    def __init__(self, slots: Slots, ledger: LeaseLedger, bounds: Bounds, *, new_lease_id: Callable[[], str]) -> None:
        self.slots = slots
        self.ledger = ledger
        self.index = Index()
        self.counters = Counters()
        self.leases = ReadLeases(ledger, max_live=bounds.max_live_leases, new_id=new_lease_id, give_back=self.release)
        self._bounds = bounds
        self._watchers: list[TierEvents] = []

    def watch(self, watcher: TierEvents) -> None:
        self._watchers.append(watcher)

    def match(
        self, namespace: bytes, block_hashes: Sequence[bytes], *, skip_blocks: int, seconds: float, owner: str
    ) -> Match:
        """The longest held prefix, leased for `seconds`; zero seconds only look. Raises Overloaded.

        The caller holds the first `skip_blocks` itself: wherever they are held here too, they only count as used.
        """
        if seconds > 0:
            self.leases.require_place()
        wanted = block_hashes[skip_blocks:]
        blocks = self.index.match(namespace, wanted)
        self.counters.hits += len(blocks)
        self.counters.misses += len(wanted) - len(blocks)
        skipped = self.index.match(namespace, block_hashes[:skip_blocks])
        matched = skip_blocks + len(blocks)
        if not blocks or seconds <= 0:
            self.index.touch(reversed([*skipped, *blocks]))
            return Match(matched)
        self.index.touch(reversed(skipped))
        self.index.refer(blocks)  # their time starts anew when they are released
        lease_id = self.leases.grant(blocks, owner=owner, seconds=seconds)
        return Match(matched, lease_id, sum(block.size_bytes for block in blocks))

    async def remove(self, namespace: bytes, block_hashes: Iterable[bytes] | None) -> int:
        """Hides these blocks, or what the whole namespace holds now; how many there were. Lets others in between."""
        if block_hashes is None:
            blocks = self.index.in_namespace(namespace)
        else:
            found = (self.index.find(Address(namespace, block_hash)) for block_hash in set(block_hashes))
            blocks = [block for block in found if block is not None]
        removed = 0
        for start in range(0, len(blocks), _HIDDEN_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            removed += self._remove_visible(blocks[start : start + _HIDDEN_AT_ONCE])
        return removed

    def reserve(self, address: Address, parent_block_hash: bytes, size_bytes: int, checksum: int) -> Block | None:
        """Room for a block that nobody sees yet, evicting others if need be. None when no room can be made."""
        if size_bytes > self._bounds.max_staged_bytes - self.index.reserved_bytes or not self._make_room(size_bytes):
            return None
        block = self.index.reserve(address, parent_block_hash, size_bytes, checksum, TIER)
        claimed = self.slots.claim(block.block_id, size_bytes)
        assert claimed, "room was made"
        return block

    def discard(self, block: Block) -> None:
        """Ends a reservation."""
        self.index.discard(block)
        self.slots.free(block.block_id)

    def publish(self, blocks: Sequence[Block]) -> int:
        """Makes verified reservations visible at once and counts them. One whose address is held is discarded."""
        published = self.index.publish(blocks)
        for block in blocks:
            if block.state is State.RESERVED:
                self.discard(block)
        self.counters.stored += len(published)
        for watcher in self._watchers:
            watcher.stored(TIER, published)
        return len(published)

    def release(self, blocks: Sequence[Block]) -> None:
        """Gives back one reference to each."""
        for block in self.index.release(blocks):
            self.slots.free(block.block_id)

    def hide(self, block: Block, state: State) -> None:
        if block.state is State.VISIBLE:
            for watcher in self._watchers:
                watcher.hidden(TIER, [block])
        if self.index.hide(block, state):
            self.slots.free(block.block_id)

    def report(self) -> TierReport:
        """`counters` is the live object: read it, keep it not."""
        return TierReport(TIER, len(self.index), self.slots.used_bytes, self.slots.capacity_bytes, self.counters)

    def _remove_visible(self, blocks: Sequence[Block]) -> int:
        """Hides those that nobody has hidden since they were found."""
        visible = [block for block in blocks if block.state is State.VISIBLE]
        for block in visible:
            self.hide(block, State.REMOVED)
        return len(visible)

    def _make_room(self, size_bytes: int) -> bool:
        victims = self._victims(size_bytes)
        if victims is None:
            # Leases that lapsed since the last sweep hold blocks back for nobody.
            self.ledger.expire()
            victims = self._victims(size_bytes)
        if victims is None:
            return False
        for block in victims:
            self.hide(block, State.REMOVED)
        self.counters.evicted += len(victims)
        return True

    def _victims(self, size_bytes: int) -> list[Block] | None:
        lacking_bytes = self.slots.used_bytes + size_bytes - self.slots.capacity_bytes
        lacking_blocks = len(self.index) + 1 - self._bounds.max_blocks
        return self.index.victims(size_bytes=lacking_bytes, blocks=lacking_blocks)
