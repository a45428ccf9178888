"""The seam between what the index knows and where the bytes are."""

from __future__ import annotations

from typing import Protocol, TypeAlias

# `memoryview` wherever a slice of something bigger is meant: it is handed on without a copy.
Bytes: TypeAlias = bytes | bytearray | memoryview


class Tier(Protocol):
    """A bounded place for payloads, by block id. It decides nothing: who stays and who goes is the index's.

        claim ──▶ write, pieces in order ──▶ read, as often as wanted ──▶ free        (free is allowed after claim)

    Claiming and freeing is bookkeeping and never waits. The bytes of one block are written by one task only.
    """

    @property
    def name(self) -> str:
        """As GetStats reports it: `ram`."""
        ...

    @property
    def capacity_bytes(self) -> int: ...

    @property
    def used_bytes(self) -> int:
        """Claimed and not freed, whether written or not. Never above `capacity_bytes`."""
        ...

    def claim(self, block_id: int, size_bytes: int) -> bool:
        """Sets room aside before a byte of it is allocated. False, without any effect, when there is not enough."""
        ...

    async def write(self, block_id: int, offset: int, piece: bytes) -> None:
        """The next bytes of a claimed block."""
        ...

    async def read(self, block_id: int, offset: int, size_bytes: int) -> Bytes:
        """A range of a wholly written block. Not a copy: to be used up before the caller lets go of the block."""
        ...

    def free(self, block_id: int) -> None:
        """The block and its room are gone."""
        ...
