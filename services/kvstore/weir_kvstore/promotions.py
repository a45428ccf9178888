"""Blocks on their way up into RAM: each once, however many readers wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from weir_kvstore.block import Block, State
from weir_kvstore.checksum import matches
from weir_kvstore.leases import Leased
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.tier import Tier


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified block: its bytes, and its place in RAM if there was room for it."""

    record: Record
    payload: Bytes  # nobody writes there any more
    block: Block | None


# Shared by all who wait for it, so it is awaited through a shield.
Fetching: TypeAlias = "asyncio.Task[Fetched | None]"


class Promotions:
    """Fetches blocks from the slower tiers, and leaves them in RAM where there is room."""

    def __init__(self, ram: LocalTier, slower: Sequence[Tier]) -> None:
        self._ram = ram
        self._slower = slower
        self._under_way: dict[Address, Fetching] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def start(self, leased: Leased) -> Fetching:
        """The block, from its own tier or from any other that has it; None: it is a miss. To be shielded."""
        task = self._under_way.get(leased.address)
        if task is None:
            task = asyncio.create_task(self._fetch(leased), name="promote")
            self._under_way[leased.address] = task
            task.add_done_callback(lambda _: self._under_way.pop(leased.address))
        return task

    async def finished(self, concern: Callable[[Address], bool]) -> None:
        """Waits for those that are under way now and are concerned."""
        tasks = [task for address, task in self._under_way.items() if concern(address)]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        await self.finished(lambda _: True)

    async def _fetch(self, leased: Leased) -> Fetched | None:
        for position, tier in enumerate(self._slower):
            got = await self._get(tier, leased)
            if got is None:
                continue
            record, payload = got
            if not isinstance(tier, LocalTier) and not await _is_it(leased.address, record, payload):
                tier.counters.corrupt += 1
                continue
            block = await self._place(leased, record, payload)
            if block is not None:
                block.copied |= 1 << position  # from there: it need not be copied back
            return Fetched(record, payload, block)
        return None

    async def _get(self, tier: Tier, leased: Leased) -> tuple[Record, Bytes] | None:
        if isinstance(tier, LocalTier) and isinstance(leased, Block) and tier.name == leased.tier:
            return await tier.load(leased)  # also when it has been removed since: the lease still holds
        return await tier.get(leased.address)

    async def _place(self, leased: Leased, record: Record, payload: Bytes) -> Block | None:
        if isinstance(leased, Block) and leased.state is State.REMOVED:
            return None  # nobody is to find it again
        if self._ram.find(record.address) is None and await self._ram.put(record, payload):
            self._ram.counters.promoted += 1
        return self._ram.find(record.address)


async def _is_it(address: Address, record: Record, payload: Bytes) -> bool:
    """Whether what another host gave is what was asked for, whatever it has verified itself."""
    right = record.address == address and len(payload) == record.size_bytes
    return right and await matches(payload, record.checksum)
