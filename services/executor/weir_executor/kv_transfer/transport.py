"""How blocks come and go: the seam between what is loaded and offered, and the wire that it takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from weir_executor.kv_transfer.plan import TierRange
from weir_executor.step_output import FullBlock

Payload = bytes | memoryview  # of one block, read-only


@dataclass(frozen=True, slots=True)
class Match:
    """What of a chain the store says it holds. A word of somebody else's: the ranges may be any."""

    matched_blocks: int  # leading ones, `skip_blocks` included
    lease_id: str | None  # None: nothing is leased
    ranges: Sequence[TierRange] = ()  # of the leased blocks, first block first


@dataclass(frozen=True, slots=True)
class Put:
    """Blocks of one namespace and one tenant."""

    namespace: bytes
    blocks: Sequence[FullBlock]
    tenant: str = ""  # whose quota they are charged to
    block_size: int = 0  # tokens; 0: not told
    prefill_seconds_per_block: float = 0.0  # 0: not told

    @property
    def size_bytes(self) -> int:
        return sum(len(block.payload) for block in self.blocks)


@dataclass(frozen=True, slots=True)
class PutResult:
    """Blocks by what became of them."""

    stored: int
    present: int
    corrupt: int
    refused: int


class BlockTransport(Protocol):
    """Used from one event loop. Every call ends within its `timeout` in seconds. All raise `grpc.RpcError`."""

    async def match(
        self, namespace: bytes, block_hashes: Sequence[bytes], *, skip_blocks: int, block_size: int, timeout: float
    ) -> Match:
        """How many leading blocks of a chain are held, and a lease on those after `skip_blocks`."""

    def get(
        self, lease_id: str, wanted: Sequence[bytes], *, block_bytes: int, timeout: float
    ) -> AsyncGenerator[Sequence[Payload], None]:
        """The first of the leased blocks, which are `wanted`, as they come: verified, in order, `block_bytes` each.

        They are the caller's own: nothing that happens to the lease or the store changes them. Ends early where the
        store has no more; raises DataCorrupt at what does not verify or was not asked for. What was given until then
        is right. Closing it ends the transfer.
        """

    async def put(self, put: Put, *, timeout: float) -> PutResult: ...

    async def release(self, lease_id: str, *, timeout: float) -> None: ...

    async def close(self) -> None:
        """Gives back what it holds itself, which is neither the channel nor a lease."""
