"""The handoffs that this executor has given out and not had back. Used from one event loop.

    open ── release: by its taker, by the caller's Abort, by the end of the caller's stream ──▶ gone
      └──── lapse: nobody has read of it for as long as the lease lasts ─────────────────────▶ gone

However it goes, the engine is told once, and the lease of kind "handoff" ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from weir_chassis.errors import NotFound
from weir_chassis.leases import Lease, LeaseLedger
from weir_executor.kv_transfer.hashes import Namespaces

if TYPE_CHECKING:
    from weir_executor.live_requests import Listener, LiveRequest

# How late a lapsed lease may be noticed, in parts of what it lasts: nobody waits for it but the blocks.
_SWEEPS_PER_LEASE = 8


@dataclass(frozen=True, slots=True, eq=False)
class HeldHandoff:
    """Blocks in this engine's pool, held for one reader. `block_hashes` name them, in order."""

    handoff_id: str
    key: int  # of the request that left them, by which the engine knows them
    block_hashes: Sequence[bytes]
    namespace: bytes
    lease: Lease
    state_format: str = ""  # of the state, where the engine has one
    state: bytes = b""


class HandoffTable:
    """As many as there are ended requests whose blocks the engine holds: its pool bounds them, and their leases."""

    def __init__(
        self,
        leases: LeaseLedger,
        random: Random,
        *,
        namespaces: Namespaces,
        lease_seconds: float,
        release_held: Callable[[int], None],
        state_format: str = "",
    ) -> None:
        """`release_held` gives a request's blocks back to the engine, whose `handoff_format` is `state_format`."""
        self._leases, self._random, self.lease_seconds = leases, random, lease_seconds
        self._state_format = state_format
        self._namespaces, self._release_held = namespaces, release_held
        self._by_id: dict[str, HeldHandoff] = {}
        self._by_caller: dict[Listener, dict[int, HeldHandoff]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def open(self, live: LiveRequest, num_blocks: int, state: bytes = b"") -> HeldHandoff:
        """The request has ended and left so many blocks. Its listener is told when they have gone."""
        assert live.lease is not None, live.key
        caller, handle = live.listener, live.handle
        self.release_of(caller, handle)  # the caller gave the handle to another request before this was taken
        handoff_id = f"{self._random.getrandbits(128):032x}"

        def gone() -> None:
            del self._by_id[handoff_id]
            del self._by_caller[caller][handle]
            if not self._by_caller[caller]:
                del self._by_caller[caller]
            self._release_held(live.key)
            caller.flush()

        lease = self._leases.acquire("handoff", live.lease.owner, expires_after=self.lease_seconds, on_release=gone)
        block_hashes = live.request.block_hashes[:num_blocks]
        namespace = self._namespaces.of(live.request.cache_scope)
        handoff = HeldHandoff(handoff_id, live.key, block_hashes, namespace, lease, self._state_format, state)
        self._by_id[handoff_id] = handoff
        self._by_caller.setdefault(caller, {})[handle] = handoff
        return handoff

    def find(self, handoff_id: str) -> HeldHandoff:
        """Renews its lease. Raises NotFound."""
        handoff = self._by_id.get(handoff_id)
        if handoff is None:
            raise NotFound(handoff_id, "no such handoff is held here: it was released, or it has lapsed")
        handoff.lease.renew(self.lease_seconds)
        return handoff

    def release(self, handoff_id: str) -> None:
        if (handoff := self._by_id.get(handoff_id)) is not None:
            handoff.lease.release()

    def release_of(self, caller: Listener, handle: int) -> None:
        """That of one of the caller's requests, if it is held."""
        if (handoff := self._by_caller.get(caller, {}).get(handle)) is not None:
            handoff.lease.release()

    def release_all_of(self, caller: Listener) -> None:
        for handoff in list(self._by_caller.get(caller, {}).values()):
            handoff.lease.release()

    def holds_of(self, caller: Listener) -> bool:
        return caller in self._by_caller

    def sweep(self) -> None:
        """Ends what has lapsed."""
        now = self._leases.clock.monotonic()
        for handoff in list(self._by_id.values()):
            if handoff.lease.expires_at is not None and handoff.lease.expires_at <= now:
                handoff.lease.release()

    async def run(self) -> None:
        """Sweeps for ever."""
        while True:
            await self._leases.clock.sleep(self.lease_seconds / _SWEEPS_PER_LEASE)
            self.sweep()
