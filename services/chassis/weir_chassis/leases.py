"""The ledger of what is held: slots, queue places, streams, blocks, budget holds.

Every resource that a request takes is a lease with an owner, released in one place that also sees cancellation:

    with ledger.acquire("slot", request_id):
        …

A holder that may vanish without a word gives its lease an expiry; `expire()` takes those back. Tests end with every
count at zero (`testing.assert_no_leases`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from weir_chassis.clock import Clock, SystemClock


class Lease:
    """One thing held by one owner. Releasing twice is releasing once."""

    __slots__ = ("_expires_at", "_ledger", "_on_release", "kind", "owner")

    def __init__(self, ledger: LeaseLedger, kind: str, owner: str, on_release: Callable[[], None] | None):
        self.kind, self.owner = kind, owner
        self._ledger = ledger
        self._on_release = on_release
        self._expires_at: float | None = None

    @property
    def live(self) -> bool:
        return self in self._ledger._live

    @property
    def expires_at(self) -> float | None:
        """By the ledger's monotonic clock; None for a lease that only its holder ends."""
        return self._expires_at

    def renew(self, seconds: float) -> None:
        """The lease now expires `seconds` from now."""
        assert self.live, f"a released {self.kind} lease cannot be renewed"
        self._expires_at = self._ledger.clock.monotonic() + seconds

    def release(self) -> bool:
        """True for the call that gave the thing back."""
        if not self._ledger._forget(self):
            return False
        if self._on_release is not None:
            self._on_release()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Lease({self.kind!r}, owner={self.owner!r}, live={self.live})"


class LeaseLedger:
    """Counts live leases by kind. Used from one event loop; not locked."""

    def __init__(self, clock: Clock | None = None, observe: Callable[[str, Callable[[], int]], None] | None = None):
        """`observe(kind, count)` is called once for each kind, of which `count` tells the number: the gauge's door."""
        self.clock: Clock = clock or SystemClock()
        self._observe = observe
        # Insertion-ordered, so that sweeps and reports come in the order of acquisition.
        self._live: dict[Lease, None] = {}
        self._by_owner: dict[str, dict[Lease, None]] = {}
        self._counts: Counter[str] = Counter()

    def acquire(
        self,
        kind: str,
        owner: str,
        *,
        expires_after: float | None = None,
        on_release: Callable[[], None] | None = None,
    ) -> Lease:
        """Books one thing of this kind. `on_release` runs once, however the lease ends."""
        lease = Lease(self, kind, owner, on_release)
        self._live[lease] = None
        self._by_owner.setdefault(owner, {})[lease] = None
        if expires_after is not None:
            lease.renew(expires_after)
        self._count(kind, +1)
        return lease

    def counts(self) -> Mapping[str, int]:
        """Live leases by kind, without the kinds that have none."""
        return {kind: count for kind, count in self._counts.items() if count}

    def live(self) -> tuple[Lease, ...]:
        return tuple(self._live)

    def held_by(self, owner: str) -> tuple[Lease, ...]:
        return tuple(self._by_owner.get(owner, ()))

    def release_owner(self, owner: str) -> int:
        """Takes back whatever the owner still holds; for the end of a request or a connection."""
        return sum(lease.release() for lease in self.held_by(owner))

    def expire(self) -> tuple[Lease, ...]:
        """Releases the leases whose time is over and returns them."""
        now = self.clock.monotonic()
        late = tuple(lease for lease in self._live if lease.expires_at is not None and lease.expires_at <= now)
        for lease in late:
            lease.release()
        return late

    def check_integrity(self) -> None:
        assert self._counts.total() == len(self._live)
        assert +self._counts == Counter(lease.kind for lease in self._live)
        assert {lease for held in self._by_owner.values() for lease in held} == set(self._live)

    def _forget(self, lease: Lease) -> bool:
        if lease not in self._live:
            return False
        del self._live[lease]
        held = self._by_owner[lease.owner]
        del held[lease]
        if not held:
            del self._by_owner[lease.owner]
        self._count(lease.kind, -1)
        return True

    def _count(self, kind: str, change: int) -> None:
        if kind not in self._counts and self._observe is not None:
            self._observe(kind, partial(self._counts.__getitem__, kind))
        self._counts[kind] += change
        assert self._counts[kind] >= 0, kind
