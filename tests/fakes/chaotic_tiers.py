"""Slots and tiers that go wrong by themselves, by a seed: as disks, memory and other hosts do."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from fakes.asked_tier import AskedTier
from fakes.faulty_slots import FaultySlots
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.tier import Slots


@dataclass
class Dice:
    """Which faults happen, how often, and how often they did."""

    random: Random
    rates: Mapping[str, float]  # by kind, for each piece of I/O
    injected: Counter[str] = field(default_factory=Counter)
    quiet: bool = False

    def __call__(self, kind: str) -> bool:
        happens = not self.quiet and self.random.random() < self.rates.get(kind, 0)
        self.injected[kind] += happens
        return happens


class ChaoticSlots(FaultySlots):
    def __init__(self, slots: Slots, dice: Dice) -> None:
        super().__init__(slots)
        self._dice = dice
        self._last_piece: bytes = b""  # of another block

    async def write(self, block_id: int, offset: int, piece: Bytes) -> None:
        await self._delay()
        if self._dice("ENOSPC"):
            raise OSError(errno.ENOSPC, "injected")
        if self._dice("EIO"):
            raise OSError(errno.EIO, "injected")
        await super().write(block_id, offset, self._written(bytes(piece)))
        self._last_piece = bytes(piece)

    async def read(self, block_id: int, offset: int, size_bytes: int) -> Bytes:
        await self._delay()
        if self._dice("EIO"):
            raise OSError(errno.EIO, "injected")
        payload = await self.slots.read(block_id, offset, size_bytes)
        if self._dice("short read"):
            return bytes(payload)[:-1]
        if self._dice("bit flip on reading"):
            return _flipped(bytes(payload), self._dice.random)
        return payload

    def _written(self, piece: bytes) -> bytes:
        """What comes to the place. It says nothing when that is wrong."""
        if self._dice("bit flip"):
            return _flipped(piece, self._dice.random)
        if self._dice("torn write"):
            half = len(piece) // 2
            return piece[:half] + bytes(len(piece) - half) if any(piece[half:]) else _flipped(piece, self._dice.random)
        if len(self._last_piece) == len(piece) and self._last_piece != piece and self._dice("reordered commit"):
            return self._last_piece
        return piece

    async def _delay(self) -> None:
        if self._dice("stall"):
            for _ in range(50):
                await asyncio.sleep(0)
        if self._dice("hang"):
            await asyncio.sleep(0.03)


class ChaoticTier(AskedTier):
    """A shared tier whose server lies: it gives what is somebody else's, or what was there before."""

    def __init__(self, behind: LocalTier, dice: Dice) -> None:
        super().__init__(behind)
        self._dice = dice
        self._given: tuple[Record, Bytes] | None = None

    async def get(self, address: Address) -> tuple[Record, Bytes] | None:
        got = await super().get(address)
        if got is None:
            return None
        lie = self._lie(got)
        self._given = got
        return lie

    async def match(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        matched = await super().match(namespace, block_hashes)
        return len(block_hashes) if self._dice("promised too much") else matched

    def _lie(self, got: tuple[Record, Bytes]) -> tuple[Record, Bytes]:
        record, payload = got
        if self._dice("wrong fingerprint"):
            return replace(record, address=Address(b"w" * 16, record.address.block_hash)), payload
        if self._given is not None and self._given[0].address != record.address:
            if self._dice("stale epoch"):  # the answer to a question that was asked before
                return self._given
            if self._dice("wrong tenant"):  # its bytes, under our record
                return record, self._given[1]
        if self._dice("bit flip on reading"):
            return record, _flipped(bytes(payload), self._dice.random)
        return got


def _flipped(payload: bytes, random: Random) -> bytes:
    wrong = bytearray(payload)
    wrong[random.randrange(len(wrong))] ^= 1 << random.randrange(8)
    return bytes(wrong)
