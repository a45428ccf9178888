"""Which blocks there are, where, in which state, and who refers to them. Pure: it holds no payload and does no I/O.

    reserved ── publish ──▶ visible ──┬─ hide ──▶ removed       (asked for, evicted, or expired)
       │                              └─ hide ──▶ quarantined   (did not verify)
       └── discard ──▶ gone           removed and quarantined are gone once nobody refers to them

Only a visible block can be found by its address, and an address has at most one. Any number of reserved blocks may want
the same address: the first that is published gets it. Whatever is gone is returned to the caller, who frees its bytes.

Looking up and leasing a thousand blocks is what callers wait for, so it costs one look into a dict per block: that
blocks were used or are referred to is noted for all of them together, and told to each and to the policy before
anything is decided by it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Final

from weir_kvstore.block import Block, State, parents_first
from weir_kvstore.notes import Notes, Tell
from weir_kvstore.policies.lru import Lru
from weir_kvstore.policies.policy import EvictionPolicy
from weir_kvstore.record import Address, Record
from weir_kvstore.tenants import Take

# Blocks whose uses are noted and not told yet: two of the longest chains. They are told long before.
_MAX_NOTED: Final = 131_072


# Walked back for each block that is published, at most: a long chain that comes block by block is walked back once in a
# while, and not for each of them.
_STEPS_PER_BLOCK: Final = 16


class Index:
    """Every block that is somewhere, and by tenant the order in which those that may go will go."""

    def __init__(self, new_policy: Callable[[], EvictionPolicy] = Lru) -> None:
        self._new_policy = new_policy
        self._ids = count(1)
        self._blocks: dict[int, Block] = {}
        self._visible: dict[bytes, dict[bytes, Block]] = {}  # namespace → block_hash → block; no empty namespace
        self._policies: dict[str, EvictionPolicy] = {}  # of the tenants that have bytes
        self._tenant_bytes: dict[str, int] = {}
        self._ages: OrderedDict[int, Block] = OrderedDict()  # the visible ones, the oldest first
        self._reserved_bytes = 0
        self._notes = Notes()
        self._grown: list[list[Block]] = []  # published, their ancestors not told of yet
        self._num_grown = self._last_walk = 0

    def __len__(self) -> int:
        """Blocks in any state."""
        return len(self._blocks)

    @property
    def reserved_bytes(self) -> int:
        """Of the blocks that are being put."""
        return self._reserved_bytes

    @property
    def tenant_bytes(self) -> dict[str, int]:
        """What each tenant's blocks take in any state; nobody with none. To be read only."""
        return self._tenant_bytes

    def evictable_bytes(self) -> dict[str, int]:
        """Of each tenant, what nobody refers to."""
        self.settle()
        return {tenant: policy.size_bytes for tenant, policy in self._policies.items() if policy.size_bytes}

    @property
    def num_noted(self) -> int:
        """Blocks of which something is to be told."""
        return len(self._notes)

    def blocks(self) -> list[Block]:
        """All of them, in any state, with what is noted of them told."""
        self.settle()
        return list(self._blocks.values())

    def visible(self) -> list[Block]:
        """The oldest first."""
        return list(self._ages.values())

    def find(self, address: Address) -> Block | None:
        return self._visible.get(address.namespace, {}).get(address.block_hash)

    def holds(self, block: Block) -> bool:
        """Whether it is not gone, whatever its state."""
        return self._blocks.get(block.block_id) is block

    def lookup(self, namespace: bytes, block_hashes: Iterable[bytes]) -> list[Block | None]:
        """The visible block at each address, or None."""
        return list(map(self._visible.get(namespace, {}).get, block_hashes))

    def line(self, address: Address, seen: set[int]) -> list[Block]:
        """The visible block at the address and those before it in its chain, each before its own parent.

        Up to one whose id is in `seen`, to which theirs are added.
        """
        held = self._visible.get(address.namespace, {})  # by hand: growing a long chain walks all of it
        line: list[Block] = []
        block = held.get(address.block_hash)
        while block is not None and block.block_id not in seen:  # also ends a chain that bites its tail
            seen.add(block.block_id)
            line.append(block)
            block = held.get(block.parent_block_hash)
        return line

    def in_namespace(self, namespace: bytes) -> list[Block]:
        return list(self._visible.get(namespace, {}).values())

    def stored_before(self, when: float, limit: int) -> list[Block]:
        """Up to so many of the visible blocks that were stored at this time or earlier, the oldest first."""
        old: list[Block] = []
        for block in self._ages.values():
            if block.stored_at > when or len(old) == limit:
                break
            old.append(block)
        return old

    def victims(self, takes: Iterable[Take]) -> list[Block] | None:
        """Whom to hide so that this much becomes free; None when that cannot be. Hides none."""
        self.settle()
        chosen: list[int] = []
        for tenant, size_bytes, blocks in takes:
            policy = self._policies.get(tenant)
            named = None if policy is None else policy.victims(size_bytes=size_bytes, blocks=blocks)
            if named is None:
                return None
            chosen += named
        return [self._blocks[block_id] for block_id in chosen]

    def reserve(self, record: Record, tier: str) -> Block:
        """A new block that nobody can see."""
        return self._enter(Block(next(self._ids), record, tier))

    def discard(self, block: Block) -> None:
        """The reserved block is gone."""
        assert block.state is State.RESERVED, block
        block.state = State.REMOVED
        self._reserved_bytes -= block.size_bytes
        self._leave(block)

    def publish(self, blocks: Sequence[Block], stored_at: float = 0.0) -> list[Block]:
        """Makes these reserved blocks visible at once, parents first; returns those that became so.

        One whose address is held already stays reserved, for the caller to discard. A parent is told of after its
        children, so that a chain is evicted from its end: without its beginning the rest could not be matched.
        """
        for block in blocks:
            block.stored_at = stored_at
        published = self._publish(blocks)
        if published:
            self._grown.append(published)
            self._num_grown += len(published)
        if published and self._num_grown * _STEPS_PER_BLOCK >= self._last_walk:
            self._renew_ancestors()
        return published

    def adopt(self, blocks: Iterable[Block]) -> list[Block]:
        """Takes in blocks that an earlier process left; returns those that are reserved, for an address is held twice.

        To an index without blocks. Who was stored last goes last, and of a chain its beginning.
        """
        assert not self._blocks
        found = sorted((self._enter(block) for block in blocks), key=lambda block: block.stored_at, reverse=True)
        self._ids = count(1 + max(self._blocks, default=0))
        self._publish(found)
        self._ages = OrderedDict((b.block_id, b) for b in reversed(found) if b.state is State.VISIBLE)
        return [block for block in found if block.state is State.RESERVED]

    def touch(self, blocks: Sequence[Block]) -> None:
        """They were used just now, in this order. Referenced ones are: their time starts when they are released."""
        self._note(self._touch, blocks)

    def refer(self, blocks: Sequence[Block]) -> None:
        """One more reference to each; none of them can be evicted."""
        self._note(self._refer, blocks)

    def release(self, blocks: Sequence[Block]) -> list[Block]:
        """One reference fewer to each, a chain's end first. Returns those that are gone by it.

        The very object that was given to `refer` not long ago has only been used: nobody was told that it stays.
        """
        if self._notes.take_back(self._refer, blocks):
            self.touch(blocks[::-1])
            return []
        self.settle()
        gone: list[Block] = []
        for block in reversed(blocks):
            assert block.references > 0, block
            block.references -= 1
            if block.references:
                continue
            if block.state is State.VISIBLE:
                self._may_go(block)
            else:
                self._leave(block)
                gone.append(block)
        return gone

    def hide(self, block: Block, state: State) -> bool:
        """From now on nobody finds the block. True when it is gone by it, False while someone refers to it."""
        assert state in (State.REMOVED, State.QUARANTINED), state
        assert block.state is not State.RESERVED, block
        self.settle()
        was_visible = block.state is State.VISIBLE
        if was_visible:
            self._forget_address(block.address)
            del self._ages[block.block_id]
        block.state = state
        if block.references:
            return False
        assert was_visible, block
        self._policies[block.tenant].remove(block.block_id)
        self._leave(block)
        return True

    def settle(self) -> None:
        """Tells the blocks and the policies what was noted."""
        self._notes.tell()

    def use_policy(self, new_policy: Callable[[], EvictionPolicy]) -> None:
        """From now on this kind decides. It learns of all blocks in the order in which they would have gone."""
        self.settle()
        before, self._new_policy = self._policies, new_policy
        self._policies = {tenant: new_policy() for tenant in before}
        for policy in before.values():
            for block_id in policy.victims(size_bytes=policy.size_bytes, blocks=len(policy)) or ():
                self._may_go(self._blocks[block_id])

    def check_integrity(self) -> None:
        """Every block is in exactly one state, and everything derived agrees with it."""
        self.settle()
        blocks = self._blocks.values()
        visible = {block.address: block for block in blocks if block.state is State.VISIBLE}
        assert visible == {b.address: b for held in self._visible.values() for b in held.values()}
        assert all(self._visible.values()), "a namespace without blocks is forgotten"
        assert self._ages == {block.block_id: block for block in visible.values()}
        ages = [block.stored_at for block in self._ages.values()]
        assert ages == sorted(ages)
        self._check_tenants({block.block_id: block for block in visible.values() if not block.references})
        reserved = [block for block in blocks if block.state is State.RESERVED]
        assert self._reserved_bytes == sum(block.size_bytes for block in reserved)
        assert not any(block.references for block in reserved)
        assert all(block.references for block in blocks if block.state in (State.REMOVED, State.QUARANTINED))

    def _check_tenants(self, evictable: dict[int, Block]) -> None:
        assert self._policies.keys() == self._tenant_bytes.keys()
        for tenant, policy in self._policies.items():
            policy.check_integrity()
            size_bytes = sum(block.size_bytes for block in self._blocks.values() if block.tenant == tenant)
            assert self._tenant_bytes[tenant] == size_bytes
            mine = [block for block in evictable.values() if block.tenant == tenant]
            assert (len(policy), policy.size_bytes) == (len(mine), sum(block.size_bytes for block in mine))
            assert all(block.block_id in policy for block in mine)

    def _enter(self, block: Block) -> Block:
        assert block.block_id not in self._blocks, block
        self._blocks[block.block_id] = block
        if block.tenant not in self._policies:
            self._policies[block.tenant] = self._new_policy()
            self._tenant_bytes[block.tenant] = 0
        self._tenant_bytes[block.tenant] += block.size_bytes
        self._reserved_bytes += block.size_bytes
        return block

    def _leave(self, block: Block) -> None:
        del self._blocks[block.block_id]
        self._tenant_bytes[block.tenant] -= block.size_bytes
        if not self._tenant_bytes[block.tenant]:  # no block is empty
            del self._tenant_bytes[block.tenant], self._policies[block.tenant]

    def _note(self, tell: Tell, blocks: Sequence[Block]) -> None:
        if self._notes.has(blocks):
            self.settle()
        self._notes.add(tell, blocks)
        if len(self._notes) > _MAX_NOTED:
            self.settle()

    def _touch(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            policy = self._policies.get(block.tenant)
            if policy is not None and block.block_id in policy:
                policy.touch(block.block_id)

    def _refer(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            assert self.holds(block), block
            if block.state is State.VISIBLE and not block.references:
                self._policies[block.tenant].remove(block.block_id)
            block.references += 1

    def _may_go(self, block: Block) -> None:
        self._policies[block.tenant].add(block.block_id, block.address.block_hash, block.size_bytes)

    def _publish(self, blocks: Sequence[Block]) -> list[Block]:
        self.settle()
        published = [block for block in parents_first(blocks) if self._publish_one(block)]
        for block in reversed(published):
            self._may_go(block)
        return published

    def _publish_one(self, block: Block) -> bool:
        assert block.state is State.RESERVED, block
        held = self._visible.setdefault(block.address.namespace, {})
        if block.address.block_hash in held:
            return False
        held[block.address.block_hash] = block
        block.state = State.VISIBLE
        self._ages[block.block_id] = block
        self._reserved_bytes -= block.size_bytes
        return True

    def _forget_address(self, address: Address) -> None:
        held = self._visible[address.namespace]
        del held[address.block_hash]
        if not held:
            del self._visible[address.namespace]

    def _renew_ancestors(self) -> None:
        """Of all that was published since the last time."""
        grown, self._grown, self._num_grown = self._grown, [], 0
        if len(grown) == 1:  # its own order is right
            ancestors = self._ancestors(grown[0], {block.block_id for block in grown[0]})
        else:  # what came later may continue what came before
            ancestors = self._ancestors(
                [block for published in reversed(grown) for block in reversed(published)], set()
            )
        self._last_walk = len(ancestors)
        for block in ancestors:
            self._policies[block.tenant].renew(block.block_id)

    def _ancestors(self, blocks: Sequence[Block], seen: set[int]) -> list[Block]:
        """The visible blocks before these in their chains and not in `seen`, every one before its own parent."""
        lines = [self.line(Address(block.address.namespace, block.parent_block_hash), seen) for block in blocks]
        # A later line ends where an earlier one passed by, so the earlier one's blocks are the parents.
        return [block for line in reversed(lines) for block in line]
