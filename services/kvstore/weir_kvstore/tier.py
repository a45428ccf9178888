"""The seams: `Tier`, a bounded place for whole blocks, and `Slots`, bytes by block id for tiers with an index.

RAM     LocalTier(index, policy, ArenaSlots)        what it holds is this process's word
disk    LocalTier(index, policy, SegmentSlots)      the same, and found again after a restart
Redis   RedisTier                                   others put into it too: it is asked, not indexed
peer    PeerTier                                    another kvstore
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from weir_kvstore.record import Address, Bytes, Record


@dataclass(slots=True)
class Counters:
    """Blocks, since start; bytes where it says so."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    evicted: int = 0
    expired: int = 0
    refused: int = 0  # no room could be made, or a quota is full
    corrupt: int = 0  # did not verify, on arrival or on reading
    promoted: int = 0  # into this tier from a slower one
    demoted: int = 0  # into this tier from a faster one
    dropped: int = 0  # not moved into it, for it could not keep up
    not_admitted: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TierReport:
    """What a tier holds in any state, and what has happened to its blocks since start."""

    tier: str
    blocks: int
    bytes: int
    capacity_bytes: int
    counters: Counters
    policy: str = ""  # empty: somebody else evicts
    ttl_seconds: float | None = None
    fault: str = ""  # why it serves nothing now
    tenant_bytes: dict[str, int] = field(default_factory=dict)
    evicted_by_policy: dict[str, int] = field(default_factory=dict)  # `counters.evicted`, where the policy may change


class Tier(Protocol):
    """A bounded place for whole blocks by their address. It may miss; what it gives has been verified.

    A tier that fails (a full disk, a lost server) misses, refuses, says so in its report, and tries again by itself:
    no method raises for it, and none waits longer than the tier's own time limit.
    """

    @property
    def name(self) -> str:
        """As GetStats reports it: `ram`, `disk`, `redis`, `peer`."""
        ...

    @property
    def counters(self) -> Counters:
        """The live books. Whoever moves blocks into the tier counts there what was promoted, demoted and dropped."""
        ...

    async def open(self) -> None:
        """Finds what an earlier process left. Nothing else is called before."""
        ...

    async def match(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        """How many leading blocks of the chain it holds. Expired ones it does not."""
        ...

    async def get(self, address: Address) -> tuple[Record, Bytes] | None:
        """A block whose bytes match their checksum; None: gone, expired, or wrong, and then quarantined and counted."""
        ...

    async def put(self, record: Record, payload: Bytes) -> bool:
        """Stores a verified block: visible when it is whole, not before. True: it is held, now or already."""
        ...

    async def remove(self, addresses: Iterable[Address]) -> int:
        """Nobody finds them from now on; how many there were."""
        ...

    async def remove_namespace(self, namespace: bytes) -> int: ...

    def report(self) -> TierReport:
        """Never waits. `counters` is the live object: read it, keep it not."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Recovered:
    """A block that slots have found again: its id in this process, and its record."""

    block_id: int
    record: Record
    stored_at: float  # seconds since the Unix epoch: a restart does not make a block young again


class Slots(Protocol):
    """Room for payloads, by block id. It decides nothing: who stays and who goes is the index's.

        claim ──▶ write, pieces in order ──▶ commit ──▶ read, as often as wanted ──▶ free    (allowed after claim)

    Claiming and freeing is bookkeeping and never waits; freed room may be written over at once. The bytes of one block
    are written by one task only. OSError means what it says: the caller treats the block as a miss or as refused.
    """

    @property
    def capacity_bytes(self) -> int: ...

    @property
    def used_bytes(self) -> int:
        """Claimed and not freed, whether written or not. Never above `capacity_bytes`."""
        ...

    def resize(self, capacity_bytes: int) -> None:
        """Room for so much from now on, as far as the place can grow: `capacity_bytes` says how much there is then.

        Never waits. What is claimed stays until it is freed.
        """
        ...

    async def recover(self) -> Sequence[Recovered]:
        """Once, before all else: what was committed by an earlier process, the oldest first. Their ids are claimed.

        Raises OSError; it may then be asked again.
        """
        ...

    def claim(self, block_id: int, size_bytes: int) -> bool:
        """Sets room aside before a byte of it is allocated. False, without any effect, when there is not enough.

        A slot may take more than its payload (it is rounded up): who makes room frees until the claim succeeds.
        """
        ...

    async def write(self, block_id: int, offset: int, piece: Bytes) -> None:
        """The next bytes of a claimed block. Raises OSError."""
        ...

    async def commit(self, block_id: int, record: Record) -> None:
        """The block is whole: slots that outlive the process find it again from now on. Raises OSError."""
        ...

    async def read(self, block_id: int, offset: int, size_bytes: int) -> Bytes:
        """A range of a wholly written block. May be no copy: to be used before it is freed. Raises OSError."""
        ...

    async def read_into(self, block_id: int, offset: int, into: memoryview) -> None:
        """A range of a wholly written block, straight into the caller's memory. Raises OSError.

        However it ends, cancelled too, nobody writes there any more. Reads asked for together may be done as one.
        """
        ...

    def hide(self, block_id: int) -> None:
        """No later process is to find the block, though it may still be read here. Freeing says that too."""
        ...

    def free(self, block_id: int) -> None:
        """The block and its room are gone."""
        ...

    async def settle(self) -> None:
        """What was hidden or freed until now is so for later processes, even if this one is killed. Raises OSError."""
        ...

    async def close(self) -> None: ...
