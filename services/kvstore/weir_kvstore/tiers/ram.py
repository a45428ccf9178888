"""Slots in this process's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weir_kvstore.record import Bytes, Record
from weir_kvstore.tier import Recovered


@dataclass(slots=True)
class _Payload:
    size_bytes: int
    # `bytes` when the payload came as one piece, which is then kept as it came; `bytearray` when it came in several.
    buffer: bytes | bytearray = b""


class RamSlots:
    """Payloads in memory, each in one buffer, bounded by their bytes."""

    def __init__(self, capacity_bytes: int) -> None:
        assert capacity_bytes > 0, capacity_bytes
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._payloads: dict[int, _Payload] = {}

    @property
    def capacity_bytes(self) -> int:
        return self._capacity_bytes

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    async def recover(self) -> Sequence[Recovered]:
        return ()

    def claim(self, block_id: int, size_bytes: int) -> bool:
        assert size_bytes > 0, size_bytes
        assert block_id not in self._payloads, block_id
        if self._used_bytes + size_bytes > self._capacity_bytes:
            return False
        self._payloads[block_id] = _Payload(size_bytes)
        self._used_bytes += size_bytes
        return True

    async def write(self, block_id: int, offset: int, piece: Bytes) -> None:
        payload = self._payloads[block_id]
        end = offset + len(piece)
        assert 0 <= offset < end <= payload.size_bytes, (offset, end, payload.size_bytes)
        if len(piece) == payload.size_bytes:
            payload.buffer = bytes(piece)  # no copy where it is bytes already
            return
        if offset == 0:
            payload.buffer = bytearray(payload.size_bytes)
        assert isinstance(payload.buffer, bytearray), "a payload's first piece comes first"
        # Through a view, so that a piece can never change the length of the buffer.
        memoryview(payload.buffer)[offset:end] = piece

    async def commit(self, block_id: int, record: Record) -> None:
        assert len(self._payloads[block_id].buffer) == record.size_bytes, record

    async def read(self, block_id: int, offset: int, size_bytes: int) -> Bytes:
        payload = self._payloads[block_id]
        assert 0 <= offset <= offset + size_bytes <= payload.size_bytes, (offset, size_bytes, payload.size_bytes)
        assert len(payload.buffer) == payload.size_bytes, "only what was written can be read"
        if isinstance(payload.buffer, bytes) and size_bytes == payload.size_bytes:
            return payload.buffer
        return memoryview(payload.buffer)[offset : offset + size_bytes]

    async def read_into(self, block_id: int, offset: int, into: memoryview) -> None:
        into[:] = await self.read(block_id, offset, len(into))

    def free(self, block_id: int) -> None:
        self._used_bytes -= self._payloads.pop(block_id).size_bytes

    async def close(self) -> None:
        self._payloads.clear()
        self._used_bytes = 0

    def check_integrity(self) -> None:
        assert self._used_bytes == sum(payload.size_bytes for payload in self._payloads.values())
        assert 0 <= self._used_bytes <= self._capacity_bytes
        assert all(len(payload.buffer) in (0, payload.size_bytes) for payload in self._payloads.values())
