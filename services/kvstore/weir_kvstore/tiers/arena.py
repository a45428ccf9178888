"""Slots in one arena of memory, which neighbours on this host may map.

    ┌ slab ┬ slab ┬ slab ┬──────────────┬──────────────────────┐
    │ in use      │ free │ touched ahead│ not touched yet      │
    └──────┴──────┴──────┴──────────────┴──────────────────────┘
                                        ▲ grows in the background, and stays

Memory is touched a little ahead of its use, so that no write waits for the kernel to find and clear pages, and a store
that holds little takes little.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from weir_chassis.telemetry import get_logger
from weir_kvstore.record import Bytes, Record
from weir_kvstore.tier import Recovered
from weir_kvstore.tiers.memory import ArenaMemory, SharedFile, own_memory
from weir_kvstore.tiers.slabs import Slabs, arena_bytes

# At 1.5 GB/s, which is what a kernel clears, a step is done in some 10 ms.
_TOUCH_BYTES: Final = 16 * 1024 * 1024
_AHEAD_BYTES: Final = 4 * _TOUCH_BYTES


@dataclass(frozen=True, slots=True)
class _Slab:
    offset: int
    size_bytes: int  # of its payload


class ArenaSlots:
    """Payloads in slabs, bounded by the payloads' bytes."""

    def __init__(self, capacity_bytes: int, allocate: Callable[[int], ArenaMemory] = own_memory) -> None:
        assert capacity_bytes > 0, capacity_bytes
        self._capacity_bytes = capacity_bytes
        self._memory = allocate(arena_bytes(capacity_bytes))
        self._size_bytes = len(self._memory.view)  # more, where pages are huge
        self._free = Slabs(self._size_bytes)
        self._slabs: dict[int, _Slab] = {}
        self._used_bytes = 0
        self._touched_bytes = 0  # from the beginning
        self._highest_bytes = 0  # the end of the highest slab there ever was
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._short = False  # of memory, when it was asked for last

    @property
    def capacity_bytes(self) -> int:
        return self._capacity_bytes

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    @property
    def shared(self) -> SharedFile | None:
        """Where neighbours find the arena; None: it is nobody else's."""
        return self._memory.file

    def resize(self, capacity_bytes: int) -> None:
        """It stays as it is: neighbours have mapped it, and must meet neither its end nor a hole."""

    async def recover(self) -> Sequence[Recovered]:
        return ()

    def claim(self, block_id: int, size_bytes: int) -> bool:
        """False also where sizes are so mixed that no free range is long enough: somebody else has to go first."""
        assert size_bytes > 0, size_bytes
        assert block_id not in self._slabs, block_id
        if self._used_bytes + size_bytes > self._capacity_bytes:
            return False
        offset = self._free.take(size_bytes)
        if offset is None:
            return False
        if not self._touch(offset, size_bytes):
            self._free.give(offset, size_bytes)
            return False
        self._slabs[block_id] = _Slab(offset, size_bytes)
        self._used_bytes += size_bytes
        return True

    def offset(self, block_id: int) -> int:
        """Where the block lies, from the arena's beginning."""
        return self._slabs[block_id].offset

    async def write(self, block_id: int, offset: int, piece: Bytes) -> None:
        slab = self._slabs[block_id]
        end = offset + len(piece)
        assert 0 <= offset < end <= slab.size_bytes, (offset, end, slab.size_bytes)
        self._memory.view[slab.offset + offset : slab.offset + end] = piece

    async def commit(self, block_id: int, record: Record) -> None:
        assert self._slabs[block_id].size_bytes == record.size_bytes, record

    async def read(self, block_id: int, offset: int, size_bytes: int) -> Bytes:
        """A view of the arena. Neighbours can write there: what matters is verified in a copy."""
        assert 0 <= offset <= offset + size_bytes <= self._slabs[block_id].size_bytes, (offset, size_bytes)
        return self.view(block_id)[offset : offset + size_bytes]

    async def read_into(self, block_id: int, offset: int, into: memoryview) -> None:
        into[:] = self.view(block_id)[offset : offset + len(into)]

    def view(self, block_id: int) -> memoryview:
        """The whole payload where it lies, not to be written."""
        slab = self._slabs[block_id]
        return self._memory.view[slab.offset : slab.offset + slab.size_bytes].toreadonly()

    def hide(self, block_id: int) -> None:
        assert block_id in self._slabs, block_id

    async def settle(self) -> None:
        """There is no later process for what is here."""

    def free(self, block_id: int) -> None:
        slab = self._slabs.pop(block_id)
        self._used_bytes -= slab.size_bytes
        self._free.give(slab.offset, slab.size_bytes)

    async def close(self) -> None:
        self._slabs.clear()
        self._used_bytes = 0
        self._memory.close()

    async def touch_ahead(self) -> None:
        """For ever keeps some memory touched beyond what is in use."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while (start := self._touched_bytes) < min(self._highest_bytes + _AHEAD_BYTES, self._size_bytes):
                size = min(_TOUCH_BYTES, self._size_bytes - start)
                if not await asyncio.to_thread(self._memory.populate, start, size):
                    break  # whoever needs it asks again, and is refused
                self._touched_bytes = max(self._touched_bytes, start + size)

    def check_integrity(self) -> None:
        self._free.check_integrity()
        slabs = sorted((slab.offset, slab.size_bytes) for slab in self._slabs.values())
        assert all(a + size <= b for (a, size), (b, _) in pairwise(slabs)), "slabs overlap"
        assert self._used_bytes == sum(size for _, size in slabs)
        assert 0 <= self._used_bytes <= self._capacity_bytes

    def _touch(self, offset: int, size_bytes: int) -> bool:
        """Whether the slab has memory. It nearly always has; else this waits for the kernel, some 0.7 ms per MiB."""
        end = offset + size_bytes
        self._highest_bytes = max(self._highest_bytes, end)
        if self._highest_bytes + _AHEAD_BYTES // 2 > self._touched_bytes:
            self._wanted.set()
        if end <= self._touched_bytes:
            return True
        touched = self._memory.populate(offset, size_bytes)
        if touched and offset <= self._touched_bytes:
            self._touched_bytes = end
        if not touched and not self._short:
            get_logger().error(
                "arena_short_of_memory", used_bytes=self._used_bytes, capacity_bytes=self._capacity_bytes
            )
        self._short = not touched
        return touched
