"""Slots around other slots that go wrong on demand, as disks and memory do."""

from __future__ import annotations

from collections.abc import Sequence

from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.tier import Recovered, Slots


class FaultySlots:
    """What it is told to spoil, it spoils when it is read; when it is told to fail, it raises instead of any I/O."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self._ids: dict[Address, int] = {}
        self._spoilt: set[int] = set()
        self.error: OSError | None = None  # of every I/O from now on

    @property
    def capacity_bytes(self) -> int:
        return self.slots.capacity_bytes

    @property
    def used_bytes(self) -> int:
        return self.slots.used_bytes

    def spoil(self, address: Address) -> None:
        """One bit of this block's payload is wrong from now on."""
        self._spoilt.add(self._ids[address])

    def resize(self, capacity_bytes: int) -> None:
        self.slots.resize(capacity_bytes)

    async def recover(self) -> Sequence[Recovered]:
        self._check()
        return await self.slots.recover()

    def claim(self, block_id: int, size_bytes: int) -> bool:
        return self.slots.claim(block_id, size_bytes)

    async def write(self, block_id: int, offset: int, piece: Bytes) -> None:
        self._check()
        await self.slots.write(block_id, offset, piece)

    async def commit(self, block_id: int, record: Record) -> None:
        self._check()
        await self.slots.commit(block_id, record)
        self._ids[record.address] = block_id

    async def read(self, block_id: int, offset: int, size_bytes: int) -> Bytes:
        self._check()
        payload = bytearray(await self.slots.read(block_id, offset, size_bytes))
        if block_id in self._spoilt and payload:
            payload[len(payload) // 2] ^= 1
        return payload

    async def read_into(self, block_id: int, offset: int, into: memoryview) -> None:
        into[:] = await self.read(block_id, offset, len(into))

    def hide(self, block_id: int) -> None:
        self.slots.hide(block_id)

    async def settle(self) -> None:
        self._check()
        await self.slots.settle()

    def free(self, block_id: int) -> None:
        self._spoilt.discard(block_id)
        self.slots.free(block_id)

    async def close(self) -> None:
        await self.slots.close()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error
