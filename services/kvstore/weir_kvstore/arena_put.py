"""Puts by reference: room in the arena is given, its new owner writes there, and what verifies becomes visible.

    reserve ──▶ commit          verified on a thread, then visible all at once
       └──────▶ cancel, or nothing for too long ──▶ freed

A reservation counts as an open put, and holds one lease of the ledger, which lapses as a silent put does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from weir_chassis.errors import NotFound
from weir_chassis.leases import Lease
from weir_kvstore.block import Block
from weir_kvstore.checksum import checksum
from weir_kvstore.put import Puts
from weir_kvstore.staging import NoPlace, PutBegin, PutResult, Staging
from weir_kvstore.store import BlockStore
from weir_kvstore.tiers.arena import ArenaSlots


class UnknownReservation(NotFound):
    """No reservation has this id: it was committed, cancelled, or has lapsed."""

    kind = "reservation"


@dataclass(frozen=True, slots=True)
class Header:
    """What a sender says of a block. Sizes are in bounds already."""

    block_hash: bytes
    parent_block_hash: bytes  # empty at a chain's beginning
    payload_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Reserved:
    reservation_id: str  # empty: there is nothing to write
    places: Sequence[int | NoPlace]  # offsets in the arena


@dataclass(frozen=True, slots=True)
class _Reservation:
    staging: Staging
    lease: Lease


class ArenaPuts:
    """Reservations by their id."""

    def __init__(self, store: BlockStore, puts: Puts, *, new_id: Callable[[], str]) -> None:
        """At most as many at once as `puts` allows, streams and reservations together."""
        assert isinstance(store.ram.slots, ArenaSlots), "the RAM tier is an arena"
        self.slots = store.ram.slots
        self._store, self._puts, self._new_id = store, puts, new_id
        self._reservations: dict[str, _Reservation] = {}

    def reserve(self, begin: PutBegin, headers: Sequence[Header], *, owner: str) -> Reserved:
        """Places for those that are neither held nor too much. Raises Overloaded."""
        staging, reservation_id = Staging(self._store, begin), self._new_id()
        lease = self._puts.hold(owner, partial(self._ended, reservation_id, staging))
        self._reservations[reservation_id] = _Reservation(staging, lease)
        places = [self._place(staging, header) for header in headers]
        if staging.reserved:
            return Reserved(reservation_id, places)
        lease.release()
        return Reserved("", places)

    async def commit(self, reservation_id: str) -> PutResult:
        """Whatever verifies is visible from now on, all at once; the reservation is over. Raises NotFound."""
        reservation = self._reservations.pop(reservation_id, None)
        if reservation is None or not reservation.lease.live:
            raise UnknownReservation(reservation_id)
        with reservation.lease:
            blocks = reservation.staging.reserved
            written = [(self.slots.view(block.block_id), block.checksum) for block in blocks]
            sound = await asyncio.to_thread(_verify, written)
            if not reservation.lease.live:  # verifying took longer than a put may be silent
                raise UnknownReservation(reservation_id)
            return _publish(reservation.staging, blocks, sound)

    def cancel(self, reservation_id: str) -> None:
        """Nothing happens for an id that is not known."""
        reservation = self._reservations.get(reservation_id)
        if reservation is not None:
            reservation.lease.release()

    def _place(self, staging: Staging, header: Header) -> int | NoPlace:
        block = staging.reserve(header.block_hash, header.parent_block_hash, header.payload_bytes, header.checksum)
        return block if isinstance(block, NoPlace) else self.slots.offset(block.block_id)

    def _ended(self, reservation_id: str, staging: Staging) -> None:
        """However a reservation ends."""
        self._reservations.pop(reservation_id, None)
        staging.end()


def _verify(payloads: Sequence[tuple[memoryview, int]]) -> list[bool]:
    return [checksum(payload) == expected for payload, expected in payloads]


def _publish(staging: Staging, blocks: Sequence[Block], sound: Sequence[bool]) -> PutResult:
    for block, is_sound in zip(blocks, sound, strict=True):
        if is_sound:
            staging.keep(block)
        else:
            staging.drop(block)
    return staging.publish()
