"""Read leases: by their id, blocks that stay until the lease is released or lapses.

A lapsed lease is noticed by whoever uses it first or by the sweep, and its id is remembered for a while, so that its
holder is told LEASE_EXPIRED (match again) and a stranger NOT_FOUND.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final, TypeAlias

from weir_chassis.errors import LeaseExpired, NotFound, Overloaded
from weir_chassis.leases import Lease, LeaseLedger
from weir_chassis.telemetry import get_logger
from weir_kvstore.block import Block
from weir_kvstore.record import Address

KIND: Final = "read"
# Whoever lost a lease asks about it at once or never. So many lost leases mean that a whole fleet has stopped reading.
_REMEMBERED_LAPSED: Final = 4096


class UnknownLease(NotFound):
    """No lease has this id, or it lapsed long ago."""

    kind = "lease"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A block that a shared tier says it has. It may be gone when it is asked for."""

    address: Address
    tier: str
    size_bytes: int = 0  # nobody told


Leased: TypeAlias = Block | Elsewhere


@dataclass(frozen=True, slots=True)
class _Grant:
    lease: Lease
    blocks: tuple[Leased, ...]
    kept: Counter[Block] = field(default_factory=Counter)  # brought up into RAM since; so many references to each


class ReadLeases:
    """Grants, extends and ends them. Whose references to give back is `give_back`'s to know."""

    def __init__(
        self,
        ledger: LeaseLedger,
        *,
        max_live: int,
        new_id: Callable[[], str],
        give_back: Callable[[Sequence[Leased]], None],
    ) -> None:
        self._ledger = ledger
        self._max_live = max_live
        self._new_id = new_id
        self._give_back = give_back
        self._grants: dict[str, _Grant] = {}
        self._lapsed: OrderedDict[str, None] = OrderedDict()  # the oldest is forgotten first
        self.num_expired = 0

    def __len__(self) -> int:
        return len(self._grants)

    def require_place(self) -> None:
        """Raises Overloaded, with the time until the next lease lapses, when there are as many as may be."""
        if len(self._grants) >= self._max_live:
            self._ledger.expire()
        if len(self._grants) < self._max_live:
            return
        wait = min(self._seconds_left(grant.lease) for grant in self._grants.values())
        raise Overloaded(f"{self._max_live} read leases are held", retry_after=timedelta(seconds=wait))

    def grant(self, blocks: Sequence[Leased], *, owner: str, seconds: float) -> str:
        """A lease on these blocks; the caller has taken a reference to each local one. There is a place for it."""
        assert len(self._grants) < self._max_live
        lease_id = self._new_id()
        assert lease_id not in self._grants, "lease ids are drawn from too small a range"
        on_release = partial(self._ended, lease_id)
        lease = self._ledger.acquire(KIND, owner, expires_after=seconds, on_release=on_release)
        self._grants[lease_id] = _Grant(lease, tuple(blocks))
        return lease_id

    def blocks(self, lease_id: str) -> tuple[Leased, ...]:
        """What is leased, first block first. Raises NotFound, LeaseExpired."""
        return self._live(lease_id).blocks

    def keep(self, lease_id: str, block: Block) -> None:
        """The lease takes over a reference that the caller has taken to a block that was brought up for it."""
        self._grants[lease_id].kept[block] += 1

    def keeps(self, lease_id: str, block: Block) -> bool:
        """Whether the live lease has such a reference."""
        return self._grants[lease_id].kept[block] > 0

    def let_go(self, lease_id: str, block: Block) -> None:
        """The lease gives one such reference back now, if it has not ended and done so."""
        grant = self._grants.get(lease_id)
        if grant is not None:
            grant.kept[block] -= 1
            self._give_back([block])

    def renew(self, lease_id: str, seconds: float) -> None:
        """The lease lasts at least `seconds` from now, and no shorter than before. Raises NotFound, LeaseExpired."""
        lease = self._live(lease_id).lease
        lease.renew(max(seconds, self._seconds_left(lease)))

    def release(self, lease_id: str) -> None:
        """Nothing happens for an id that is not known."""
        grant = self._grants.get(lease_id)
        if grant is not None:
            grant.lease.release()

    def _live(self, lease_id: str) -> _Grant:
        grant = self._grants.get(lease_id)
        if grant is not None and self._seconds_left(grant.lease) > 0:
            return grant
        if grant is not None:
            grant.lease.release()
        if lease_id in self._lapsed:
            raise LeaseExpired("the lease has lapsed; match the prefix again")
        raise UnknownLease(lease_id)

    def _seconds_left(self, lease: Lease) -> float:
        assert lease.expires_at is not None, lease
        return lease.expires_at - self._ledger.clock.monotonic()

    def _ended(self, lease_id: str) -> None:
        """However a lease ends, it ends here."""
        grant = self._grants.pop(lease_id)
        if self._seconds_left(grant.lease) <= 0:
            self._remember(lease_id, grant)
        self._give_back(grant.blocks)
        if grant.kept:
            self._give_back([*grant.kept.elements()])

    def _remember(self, lease_id: str, grant: _Grant) -> None:
        self.num_expired += 1
        self._lapsed[lease_id] = None
        if len(self._lapsed) > _REMEMBERED_LAPSED:
            self._lapsed.popitem(last=False)
        get_logger().warning("read_lease_lapsed", owner=grant.lease.owner, blocks=len(grant.blocks))
