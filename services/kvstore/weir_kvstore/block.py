"""A block of a local tier, as its index knows it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from weir_kvstore.record import Address, Record


class State(Enum):
    RESERVED = "reserved"
    VISIBLE = "visible"
    REMOVED = "removed"
    QUARANTINED = "quarantined"


@dataclass(slots=True, eq=False)
class Block:
    """One payload's place. Two blocks are the same only by identity: an address may be reserved twice."""

    block_id: int
    record: Record
    tier: str  # where the bytes are
    state: State = State.RESERVED
    references: int = 0  # as far as they have been told
    stored_at: float = 0.0  # when it became visible, by the tier's monotonic clock
    # The mover's, one bit for each slower tier: that it is let in there, and that it has come there.
    admitted: int = 0
    copied: int = 0
    size_bytes: int = field(init=False)  # the record's, for it is read for every block that is leased

    def __post_init__(self) -> None:
        self.size_bytes = self.record.size_bytes

    @property
    def address(self) -> Address:
        return self.record.address

    @property
    def parent_block_hash(self) -> bytes:
        return self.record.parent_block_hash

    @property
    def checksum(self) -> int:
        return self.record.checksum

    @property
    def tenant(self) -> str:
        return self.record.tenant


def parents_first(blocks: Sequence[Block]) -> list[Block]:
    """The same blocks, each after its parent where both are here; otherwise in the order given."""
    waiting = {block.address.block_hash: block for block in reversed(blocks)}
    ordered: list[Block] = []
    for block in blocks:
        line: list[Block] = []
        here: Block | None = block
        while here is not None and waiting.get(here.address.block_hash) is here:
            del waiting[here.address.block_hash]
            line.append(here)
            here = waiting.get(here.parent_block_hash)
        ordered.extend(reversed(line))
    # A second copy of an address waits under no name of its own; it comes last and finds the address held.
    placed = {block.block_id for block in ordered}
    return ordered + [block for block in blocks if block.block_id not in placed]
