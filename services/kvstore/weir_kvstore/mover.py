"""What is put into RAM is copied to the slower tiers in the background, so that it outlives its place there.

    committed in RAM ──▶ offered to every lane ──▶ admitted? ──▶ queue, bounded in bytes ──▶ verified ──▶ put
    used in RAM ───────────────┘                                   └─ no room: dropped, counted, and offered once more
    leaving RAM ───────────────┘  if it was admitted and is not copied yet

One lane for each slower tier, so that one that stalls holds up nobody else. The way up is promotions.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from weir_chassis.leases import Lease
from weir_kvstore.bandwidth import Bandwidth
from weir_kvstore.block import Block, State
from weir_kvstore.checksum import matches
from weir_kvstore.leases import Leased
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.policies.admission import Admission
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.tier import Tier

# At once into one tier: enough that a round trip or a disk's latency is not what bounds it.
_AT_ONCE: Final = 4
# Of RAM, what may wait for one lane: it cannot be evicted while it waits, and the other half can.
_MAX_WAITING_SHARE: Final = 1 / 2
# Copies of blocks that have left RAM, which take memory of their own.
_MAX_COPIED_BYTES: Final = 64 * 1024 * 1024
# Used since the last sweep and not looked at yet: looking at so many takes some 10 ms.
_MAX_NOTED_USES: Final = 16_384


@dataclass(slots=True, eq=False)
class _Load:
    """A block on its way: pinned in RAM, or a copy of what has left it."""

    record: Record
    block: Block
    pin: Lease | None = None
    payload: bytes = b""


class Lane:
    """The way into one slower tier."""

    def __init__(self, ram: LocalTier, tier: Tier, bit: int, admission: Admission, bandwidth: Bandwidth) -> None:
        """`bit`: by which a block in RAM remembers this tier."""
        self.tier = tier
        self.admission = admission
        self.bandwidth = bandwidth
        self._ram = ram
        self._bit = bit
        self._queue: deque[_Load] = deque()
        self._queued: dict[Address, _Load] = {}  # those under way too
        self._queued_bytes = 0
        self._under_way: dict[Address, asyncio.Task[None]] = {}
        self._behind = False  # something was dropped
        self._wanted = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queued)

    def offer(self, block: Block, *, may_drop: bool = True) -> None:
        """Queues the block, if the tier lacks it, lets it in, and keeps up."""
        if block.copied & self._bit or block.address in self._queued or self._has(block):
            return
        if not block.admitted & self._bit and not self.admission.admits(block.record):
            self.tier.counters.not_admitted += 1
            return
        block.admitted |= self._bit
        if may_drop and self._queued_bytes + block.size_bytes > self._ram.capacity_bytes * _MAX_WAITING_SHARE:
            self.tier.counters.dropped += 1
            self._behind = True
            return
        self._append(_Load(block.record, block, pin=self._ram.pin(block, "mover")))

    def leaving(self, block: Block, view: Callable[[int], Bytes]) -> None:
        """The block goes from RAM now. What should have been copied by then is now, if the lane is not busy."""
        limit = min(_MAX_COPIED_BYTES, self._ram.capacity_bytes // 4)
        if self._lacks(block) and self._queued_bytes + block.size_bytes <= limit:
            self._append(_Load(block.record, block, payload=bytes(view(block.block_id))))

    def catch_up(self) -> None:
        """When it has time again, what was dropped is offered once more, as far as it is in RAM still."""
        if not self._behind or self._queue:
            return
        self._behind = False
        for block in reversed(self._ram.index.visible()):
            if self._lacks(block):
                self.offer(block)
            if self._behind:
                break

    async def run(self) -> None:
        """For ever, within its bandwidth."""
        while True:
            while self._queue and len(self._under_way) < _AT_ONCE:
                await self.bandwidth.take(self._queue[0].record.size_bytes)
                self._start()
            self._wanted.clear()
            await self._wanted.wait()

    async def flush(self) -> None:
        """All that waits, as fast as the tier takes it."""
        while self._queue or self._under_way:
            while self._queue and len(self._under_way) < _AT_ONCE:
                self._start()
            await asyncio.wait(self._under_way.values(), return_when=asyncio.FIRST_COMPLETED)

    async def finished(self, concern: Callable[[Address], bool]) -> None:
        """Waits for those that are under way now and are concerned; those that wait are forgotten."""
        for load in [load for load in self._queue if concern(load.record.address)]:
            self._queue.remove(load)
            self._done(load)
        tasks = [task for address, task in self._under_way.items() if concern(address)]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Whatever has not been begun is dropped and counted."""
        self.tier.counters.dropped += len(self._queue)
        await self.finished(lambda _: True)

    def _start(self) -> None:
        if not self._queue:  # forgotten while the bandwidth was waited for
            return
        load = self._queue.popleft()
        task = asyncio.create_task(self._move(load), name=f"to_{self.tier.name}")
        self._under_way[load.record.address] = task
        task.add_done_callback(lambda _: self._moved(load))

    async def _move(self, load: _Load) -> None:
        payload = load.payload or await self._ram.slots.read(load.block.block_id, 0, load.record.size_bytes)
        if not await matches(payload, load.record.checksum):
            if load.pin is not None:
                self._ram.quarantine(load.block)
        elif await self.tier.put(load.record, payload):
            load.block.copied |= self._bit
            self.tier.counters.demoted += 1

    def _moved(self, load: _Load) -> None:
        del self._under_way[load.record.address]
        self._done(load)

    def _append(self, load: _Load) -> None:
        self._queue.append(load)
        self._queued[load.record.address] = load
        self._queued_bytes += load.record.size_bytes
        self._wanted.set()

    def _done(self, load: _Load) -> None:
        del self._queued[load.record.address]
        self._queued_bytes -= load.record.size_bytes
        if load.pin is not None:
            load.pin.release()
        self._wanted.set()

    def _has(self, block: Block) -> bool:
        """Whether an index says so; a shared tier is not asked."""
        has = isinstance(self.tier, LocalTier) and self.tier.find(block.address) is not None
        if has:
            block.copied |= self._bit
        return has

    def _lacks(self, block: Block) -> bool:
        """Whether the block is let in, and neither there nor on its way."""
        return bool(block.admitted & ~block.copied & self._bit) and block.address not in self._queued


class Mover:
    """Watches RAM and fills the lanes."""

    def __init__(self, ram: LocalTier, lanes: Sequence[Lane], view: Callable[[int], Bytes] | None) -> None:
        """`view`: the bytes of a block in RAM, by its id, without waiting. None: who leaves is not copied then."""
        self._ram = ram
        self._view = view
        self.lanes = lanes
        self._uses: list[Sequence[Leased]] = []
        self._num_uses = 0

    def __len__(self) -> int:
        """Blocks that wait or are under way."""
        return sum(map(len, self.lanes))

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            for lane in self.lanes:
                tasks.create_task(lane.run(), name=f"lane_{lane.tier.name}")

    async def drain(self) -> None:
        """Copies whatever a slower tier should have and has not, the newest first; cut off by whoever has no time."""
        for block in reversed(self._ram.index.visible()):
            for lane in self.lanes:
                lane.offer(block, may_drop=False)
        await asyncio.gather(*(lane.flush() for lane in self.lanes))

    async def close(self) -> None:
        for lane in self.lanes:
            await lane.close()

    async def finished(self, concern: Callable[[Address], bool]) -> None:
        """After this, nothing that is concerned comes to a slower tier that had been offered before."""
        for lane in self.lanes:
            await lane.finished(concern)

    def used(self, blocks: Sequence[Leased]) -> None:
        """Notes it only: whoever looks blocks up does not wait for more."""
        if self.lanes and self._num_uses < _MAX_NOTED_USES:
            self._uses.append(blocks)
            self._num_uses += len(blocks)

    def sweep(self) -> None:
        """Offers what was used since the last time."""
        uses, self._uses, self._num_uses = self._uses, [], 0
        for blocks in uses:
            self._offer([block for block in blocks if isinstance(block, Block) and block.tier == self._ram.name])
        for lane in self.lanes:
            lane.catch_up()

    # --- as a watcher

    def stored(self, tier: str, blocks: Sequence[Block]) -> None:
        if tier == self._ram.name:
            self._offer(blocks)

    def evicting(self, tier: str, blocks: Sequence[Block]) -> None:
        if tier != self._ram.name or self._view is None:
            return
        for block in blocks:
            for lane in self.lanes:
                lane.leaving(block, self._view)

    def hidden(self, tier: str, blocks: Sequence[Block]) -> None:
        pass

    def _offer(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            if block.state is State.VISIBLE:
                for lane in self.lanes:
                    lane.offer(block)
