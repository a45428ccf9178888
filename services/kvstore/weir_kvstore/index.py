"""Which blocks there are, where, in which state, and who refers to them. Pure: it holds no payload and does no I/O.

    reserved ── publish ──▶ visible ──┬─ hide ──▶ removed       (asked for, or evicted)
       │                              └─ hide ──▶ quarantined   (did not verify)
       └── discard ──▶ gone           removed and quarantined are gone once nobody refers to them

Only a visible block can be found by its address, and an address has at most one. Any number of reserved blocks may want
the same address: the first that is published gets it. Whatever is gone is returned to the caller, who frees its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count

from weir_kvstore.policies.lru import Lru
from weir_kvstore.record import Address


class State(Enum):
    RESERVED = "reserved"
    VISIBLE = "visible"
    REMOVED = "removed"
    QUARANTINED = "quarantined"


@dataclass(slots=True, eq=False)
class Block:
    """One payload's record. Two blocks are the same only by identity: an address may be reserved twice."""

    block_id: int
    address: Address
    parent_block_hash: bytes  # empty at a chain's beginning
    size_bytes: int
    checksum: int
    tier: str  # where the bytes are
    state: State = State.RESERVED
    references: int = 0


class Index:
    """Every block that is somewhere, and the order in which those that may go will go."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._blocks: dict[int, Block] = {}
        self._visible: dict[bytes, dict[bytes, Block]] = {}  # namespace → block_hash → block; no empty namespace
        self._order = Lru()
        self._reserved_bytes = 0

    def __len__(self) -> int:
        """Blocks in any state."""
        return len(self._blocks)

    @property
    def reserved_bytes(self) -> int:
        """Of the blocks that are being put."""
        return self._reserved_bytes

    def blocks(self) -> list[Block]:
        """All of them, in any state."""
        return list(self._blocks.values())

    def find(self, address: Address) -> Block | None:
        return self._visible.get(address.namespace, {}).get(address.block_hash)

    def match(self, namespace: bytes, block_hashes: Iterable[bytes]) -> list[Block]:
        """The visible blocks of the longest held prefix. Takes no reference."""
        held = self._visible.get(namespace, {})
        found: list[Block] = []
        for block_hash in block_hashes:
            block = held.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def in_namespace(self, namespace: bytes) -> list[Block]:
        return list(self._visible.get(namespace, {}).values())

    def victims(self, *, size_bytes: int, blocks: int) -> list[Block] | None:
        """Whom to hide so that this much becomes free; None when that cannot be. Hides none."""
        chosen = self._order.victims(size_bytes=size_bytes, blocks=blocks)
        return None if chosen is None else [self._blocks[block_id] for block_id in chosen]

    def reserve(self, address: Address, parent_block_hash: bytes, size_bytes: int, checksum: int, tier: str) -> Block:
        """A new block that nobody can see."""
        block = Block(next(self._ids), address, parent_block_hash, size_bytes, checksum, tier)
        self._blocks[block.block_id] = block
        self._reserved_bytes += size_bytes
        return block

    def discard(self, block: Block) -> None:
        """The reserved block is gone."""
        assert block.state is State.RESERVED, block
        block.state = State.REMOVED
        self._reserved_bytes -= block.size_bytes
        del self._blocks[block.block_id]

    def publish(self, blocks: Sequence[Block]) -> list[Block]:
        """Makes these reserved blocks visible at once, parents first; returns those that became so.

        One whose address is held already stays reserved, for the caller to discard. A parent is told of after its
        children, so that a chain is evicted from its end: without its beginning the rest could not be matched.
        """
        published = [block for block in _parents_first(blocks) if self._publish_one(block)]
        for block in reversed(published):
            self._order.add(block.block_id, block.address.block_hash, block.size_bytes)
        for block in self._ancestors(published):
            self._order.renew(block.block_id)
        return published

    def touch(self, blocks: Iterable[Block]) -> None:
        """They were used just now, in this order. Referenced ones are: their time starts when they are released."""
        for block in blocks:
            if block.block_id in self._order:
                self._order.touch(block.block_id)

    def refer(self, blocks: Iterable[Block]) -> None:
        """One more reference to each; none of them can be evicted."""
        for block in blocks:
            if block.state is State.VISIBLE and not block.references:
                self._order.remove(block.block_id)
            block.references += 1

    def release(self, blocks: Sequence[Block]) -> list[Block]:
        """One reference fewer to each, a chain's end first. Returns those that are gone by it."""
        gone: list[Block] = []
        for block in reversed(blocks):
            assert block.references > 0, block
            block.references -= 1
            if block.references:
                continue
            if block.state is State.VISIBLE:
                self._order.add(block.block_id, block.address.block_hash, block.size_bytes)
            else:
                del self._blocks[block.block_id]
                gone.append(block)
        return gone

    def hide(self, block: Block, state: State) -> bool:
        """From now on nobody finds the block. True when it is gone by it, False while someone refers to it."""
        assert state in (State.REMOVED, State.QUARANTINED), state
        assert block.state is not State.RESERVED, block
        if block.state is State.VISIBLE:
            self._forget_address(block.address)
        block.state = state
        if block.references:
            return False
        self._order.remove(block.block_id)
        del self._blocks[block.block_id]
        return True

    def check_integrity(self) -> None:
        """Every block is in exactly one state, and everything derived agrees with it."""
        self._order.check_integrity()
        blocks = self._blocks.values()
        visible = {block.address: block for block in blocks if block.state is State.VISIBLE}
        assert visible == {b.address: b for held in self._visible.values() for b in held.values()}
        assert all(self._visible.values()), "a namespace without blocks is forgotten"
        evictable = {block.block_id for block in visible.values() if not block.references}
        assert len(evictable) == len(self._order)
        assert all(block_id in self._order for block_id in evictable)
        reserved = [block for block in blocks if block.state is State.RESERVED]
        assert self._reserved_bytes == sum(block.size_bytes for block in reserved)
        assert not any(block.references for block in reserved)
        assert all(block.references for block in blocks if block.state in (State.REMOVED, State.QUARANTINED))

    def _publish_one(self, block: Block) -> bool:
        assert block.state is State.RESERVED, block
        held = self._visible.setdefault(block.address.namespace, {})
        if block.address.block_hash in held:
            return False
        held[block.address.block_hash] = block
        block.state = State.VISIBLE
        self._reserved_bytes -= block.size_bytes
        return True

    def _forget_address(self, address: Address) -> None:
        held = self._visible[address.namespace]
        del held[address.block_hash]
        if not held:
            del self._visible[address.namespace]

    def _ancestors(self, blocks: Sequence[Block]) -> list[Block]:
        """The visible blocks before these in their chains, every one before its own parent."""
        seen = {block.block_id for block in blocks}  # also ends a chain that bites its tail
        lines: list[list[Block]] = []
        for block in blocks:
            held = self._visible.get(block.address.namespace, {})  # by hand: growing a long chain walks all of it
            line: list[Block] = []
            parent = held.get(block.parent_block_hash)
            while parent is not None and parent.block_id not in seen:
                seen.add(parent.block_id)
                line.append(parent)
                parent = held.get(parent.parent_block_hash)
            lines.append(line)
        # A later line ends where an earlier one passed by, so the earlier one's blocks are the parents.
        return [block for line in reversed(lines) for block in line]


def _parents_first(blocks: Sequence[Block]) -> list[Block]:
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
