"""What the tiers hold, as a log that others follow: a tier's watcher on one side, `KvEventLog` on the other.

What happens in one turn of the event loop is told together: a put's chain is one event, and so is all that an eviction
or a removal takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.kv_events import blocks as events
from weir_chassis.kv_events.blocks import KvEventLog
from weir_kvstore.record import Address


class Placed(Protocol):
    """What is told of a block: a record has it, and whatever stands for one."""

    @property
    def address(self) -> Address: ...

    @property
    def parent_block_hash(self) -> bytes:
        """Empty at a chain's beginning."""
        ...


@dataclass(slots=True)
class _Change:
    """One event that may still grow: blocks of one tier and namespace that came as a chain, or that went."""

    tier: str
    namespace: bytes
    parent_block_hash: bytes | None  # None: they went
    block_hashes: list[bytes] = field(default_factory=list)

    def told(self) -> Iterator[KvEvent]:
        if self.parent_block_hash is None:
            return events.removed(self.block_hashes, tier=self.tier, namespace=self.namespace)
        return events.stored(self.block_hashes, self.parent_block_hash, tier=self.tier, namespace=self.namespace)


class TierEvents:
    """Watches tiers, and appends what they do to the log before the next turn of the event loop begins."""

    def __init__(self, log: KvEventLog) -> None:
        self._log = log
        # Until the end of this turn, in which no tier does more than its longest step: some thousands of blocks.
        self._changes: list[_Change] = []

    def stored(self, tier: str, blocks: Sequence[Placed]) -> None:
        for block in blocks:
            last = self._changes[-1] if self._changes else None
            namespace, parent = block.address.namespace, block.parent_block_hash
            if (
                last is None
                or last.parent_block_hash is None
                or (last.tier, last.namespace, last.block_hashes[-1]) != (tier, namespace, parent)
            ):
                last = self._begin(_Change(tier, namespace, parent))
            last.block_hashes.append(block.address.block_hash)

    def evicting(self, tier: str, blocks: Sequence[Placed]) -> None:
        """They are still there; when they are hidden, it is told."""

    def hidden(self, tier: str, blocks: Sequence[Placed]) -> None:
        for block in blocks:
            last = self._changes[-1] if self._changes else None
            namespace = block.address.namespace
            if last is None or last.parent_block_hash is not None or (last.tier, last.namespace) != (tier, namespace):
                last = self._begin(_Change(tier, namespace, None))
            last.block_hashes.append(block.address.block_hash)

    def flush(self) -> None:
        changes, self._changes = self._changes, []
        self._log.append([event for change in changes for event in change.told()])

    def _begin(self, change: _Change) -> _Change:
        if not self._changes:
            asyncio.get_running_loop().call_soon(self.flush)
        self._changes.append(change)
        return change
