"""Blocks in slots that only this process fills: an index says what is there, a policy who goes, a lifetime when.

RAM and disk are this. What is found in the index cannot be wrong about itself, and costs no I/O to find.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final, Protocol

from weir_chassis.breaker import Breaker
from weir_chassis.leases import Lease, LeaseLedger
from weir_chassis.telemetry import get_logger
from weir_kvstore.block import Block, State
from weir_kvstore.checksum import matches
from weir_kvstore.growing import Growing
from weir_kvstore.health import Health, TimedIo
from weir_kvstore.index import Index
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.room import Room
from weir_kvstore.rules import Rules
from weir_kvstore.tier import Counters, Recovered, Slots, TierReport

PIN: Final = "pin"
# Hidden in one turn of the event loop, some 2 µs each, so that the others wait a few milliseconds at most.
_HIDDEN_AT_ONCE: Final = 2048
_OPEN_SECONDS: Final = 300.0  # to read the index of a full disk, or to rebuild it


class Watcher(Protocol):
    """Is told what a tier does in the same turn of the event loop, and only looks."""

    def stored(self, tier: str, blocks: Sequence[Block]) -> None:
        """They are visible now; parents first."""
        ...

    def evicting(self, tier: str, blocks: Sequence[Block]) -> None:
        """They are about to go, and are still whole."""
        ...

    def hidden(self, tier: str, blocks: Sequence[Block]) -> None:
        """Nobody finds them any more, whatever the reason."""
        ...


class LocalTier:
    """A tier of this process's own. The methods that do not wait are for those who hold its blocks: the store.

    Reading and writing fail apart: a full disk still gives what it has.
    """

    def __init__(self, name: str, slots: Slots, ledger: LeaseLedger, random: Random, rules: Rules) -> None:
        self.slots = slots
        self.ledger = ledger
        self.index = Index(rules.new_policy)
        self._growing = Growing(self.index, ledger.clock, give_back=self.release)
        self._name = name
        self._clock = ledger.clock
        self._room = Room(self.index, slots, self._growing, ledger, rules, evict=self._evict)
        self._counters = Counters()
        self._evicted_by_policy: dict[str, int] = {}
        self._reading = Health("reading", Breaker(self._clock, random))
        # A disk that is full stays so for a while, so one failure is enough.
        self._writing = Health("writing", Breaker(self._clock, random, max_failures=1))
        self._opening = Health("opening", Breaker(self._clock, random, max_failures=1))
        self._opened = False
        self._io = TimedIo(name)
        self._watchers: list[Watcher] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def counters(self) -> Counters:
        return self._counters

    @property
    def capacity_bytes(self) -> int:
        return self._room.capacity_bytes

    @property
    def rules(self) -> Rules:
        return self._room.rules

    @property
    def readable(self) -> bool:
        """Whether its blocks can be had now, as far as is known."""
        return self._opened and not self._reading.rests

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    def apply(self, rules: Rules) -> None:
        """These rules hold from now on. What does not fit them goes, as far as nobody refers to it."""
        if rules.new_policy is not self.rules.new_policy:
            self.index.use_policy(rules.new_policy)
        if rules.max_bytes is not None:
            self.slots.resize(rules.max_bytes)
        self._room.rules = rules
        self._room.shrink()

    def report(self) -> TierReport:
        faults = (self._opening.fault, self._reading.fault, self._writing.fault)
        return TierReport(
            self._name,
            len(self.index),
            self.slots.used_bytes,
            self.capacity_bytes,
            self._counters,
            policy=self.rules.policy,
            ttl_seconds=self.rules.ttl_seconds,
            fault="; ".join(dict.fromkeys(fault for fault in faults if fault)),
            tenant_bytes=dict(self.index.tenant_bytes),
            evicted_by_policy=dict(self._evicted_by_policy),
        )

    # --- in one turn of the event loop

    def find(self, address: Address) -> Block | None:
        (block,) = self.lookup(address.namespace, [address.block_hash])
        return block

    def lookup(self, namespace: bytes, block_hashes: Sequence[bytes]) -> list[Block | None]:
        """The block at each address, or None. None is expired."""
        if not self.readable:
            return [None] * len(block_hashes)
        all_gone = self._expire()
        found = self.index.lookup(namespace, block_hashes)
        return found if all_gone else [None if block is None or self._is_over(block) else block for block in found]

    def reserve(self, record: Record) -> Block | None:
        """Room for a block that nobody sees yet, evicting others if need be. None when no room can be made.

        Those that it continues are not evicted for it.
        """
        return self._room.reserve(record, self._name) if self._opened else None

    def discard(self, block: Block) -> None:
        """Ends a reservation."""
        self._room.discard(block)

    def publish(self, blocks: Sequence[Block]) -> int:
        """Makes verified reservations visible at once and counts them. One whose address is held is discarded."""
        published = self.index.publish(blocks, self._clock.monotonic())
        for block in blocks:
            if block.state is State.RESERVED:
                self.discard(block)
        self._growing.published(published)
        self._counters.stored += len(published)
        self._counters.written_bytes += sum(block.size_bytes for block in published)
        self._tell_stored(published)
        return len(published)

    def refer(self, blocks: Sequence[Block]) -> None:
        """One more reference to each: none goes before it is given back."""
        self.index.refer(blocks)

    def release(self, blocks: Sequence[Block]) -> None:
        """Gives back one reference to each."""
        for block in self.index.release(blocks):
            self.slots.free(block.block_id)

    def pin(self, block: Block, owner: str) -> Lease:
        """The block's bytes are not freed before this is released, whatever becomes of the leases on it."""
        self.refer([block])
        return self.ledger.acquire(PIN, owner, on_release=lambda: self.release([block]))

    def hide(self, blocks: Sequence[Block], state: State) -> None:
        """Nobody finds these from now on. To be hidden already is no harm."""
        self._growing.forget(blocks)
        visible = [block for block in blocks if block.state is State.VISIBLE]
        for watcher in self._watchers:
            watcher.hidden(self._name, visible)
        for block in blocks:
            if self.index.hide(block, state):
                self.slots.free(block.block_id)
            else:
                self.slots.hide(block.block_id)

    def quarantine(self, block: Block) -> None:
        """Its bytes are not what was put. It is counted once, whoever finds it."""
        if block.state is State.QUARANTINED:
            return
        self._counters.corrupt += 1
        self.hide([block], State.QUARANTINED)
        get_logger().error("block_quarantined", tier=self._name, size_bytes=block.size_bytes)

    def sweep(self) -> None:
        """What is due whether anybody calls or not."""
        self.index.settle()
        self._growing.sweep()
        self._expire()
        if self.slots.used_bytes > self.capacity_bytes:
            self._room.shrink()

    # --- as a tier

    async def open(self) -> None:
        """Also to be called again, as long as it has not succeeded: it tries when it is time to."""
        if self._opened or not self._opening.allows():
            return
        recovered = await self._io.run(self._opening, self.slots.recover(), seconds=_OPEN_SECONDS)
        if recovered is not None:
            self._adopt(recovered)
            self._opened = True

    async def match(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        found = self.lookup(namespace, block_hashes)
        matched = found.index(None) if None in found else len(found)
        self._counters.hits += matched
        self._counters.misses += len(found) - matched
        self.index.touch([block for block in reversed(found[:matched]) if block is not None])
        return matched

    async def get(self, address: Address) -> tuple[Record, Bytes] | None:
        block = self.find(address)
        return None if block is None else await self.load(block)

    async def load(self, block: Block) -> tuple[Record, bytes] | None:
        """A block's own bytes, a copy, verified; None as with `get`."""
        # Gone: whoever had leased it did not wait.
        if block.state is State.QUARANTINED or not self.index.holds(block) or not self._reading.allows():
            self._counters.misses += 1
            return None
        copying = self._copy(block, self.pin(block, self._name))
        payload = await self._io.run(self._reading, copying, seconds=self.rules.io_seconds)
        if payload is None:
            self._counters.misses += 1
            return None
        self._counters.read_bytes += len(payload)
        self.index.touch([block])
        return block.record, payload

    async def put(self, record: Record, payload: Bytes) -> bool:
        assert len(payload) == record.size_bytes, record
        if self.find(record.address) is not None:
            return True
        block = self.reserve(record) if self._writing.allows() else None
        if block is None:
            self._counters.refused += 1
            return False
        return bool(await self._io.run(self._writing, self._write(block, payload), seconds=self.rules.io_seconds))

    async def remove(self, addresses: Iterable[Address]) -> int:
        found = (self.index.find(address) for address in set(addresses))
        return await self._remove([block for block in found if block is not None])

    async def remove_namespace(self, namespace: bytes) -> int:
        return await self._remove(self.index.in_namespace(namespace))

    async def close(self) -> None:
        self._opened = False
        await self._io.close()
        await self.slots.close()

    # --- I/O

    async def _copy(self, block: Block, pin: Lease) -> bytes | None:
        """A copy, so that it stays what was verified when the block is freed. None: it is wrong."""
        with pin:
            payload = bytes(await self.slots.read(block.block_id, 0, block.size_bytes))
            if len(payload) == block.size_bytes and await matches(payload, block.checksum):
                return payload
            self.quarantine(block)
            return None

    async def _write(self, block: Block, payload: Bytes) -> bool:
        """The second phase of a put: whole and committed, then visible."""
        try:
            await self.slots.write(block.block_id, 0, payload)
            await self.slots.commit(block.block_id, block.record)
        except BaseException:
            self.discard(block)
            raise
        self.publish([block])
        return True

    # --- going

    def _evict(self, victims: Sequence[Block]) -> None:
        if not victims:
            return
        for watcher in self._watchers:
            watcher.evicting(self._name, victims)
        self.hide(victims, State.REMOVED)
        self._counters.evicted += len(victims)
        policy = self.rules.policy
        self._evicted_by_policy[policy] = self._evicted_by_policy.get(policy, 0) + len(victims)
        for block in victims:
            self.rules.admission.evicted(block.record)

    def _expire(self) -> bool:
        """Hides what is over its time, a bounded number of blocks. False when there are more."""
        if self.rules.ttl_seconds is None:
            return True
        over = self.index.stored_before(self._clock.monotonic() - self.rules.ttl_seconds, _HIDDEN_AT_ONCE)
        if over:
            self.hide(over, State.REMOVED)
            self._counters.expired += len(over)
        return len(over) < _HIDDEN_AT_ONCE

    def _is_over(self, block: Block) -> bool:
        ttl_seconds = self.rules.ttl_seconds
        return ttl_seconds is not None and block.stored_at + ttl_seconds <= self._clock.monotonic()

    async def _remove(self, blocks: Sequence[Block]) -> int:
        """Hides those that nobody has hidden since they were found. Lets others in between."""
        removed = 0
        for start in range(0, len(blocks), _HIDDEN_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            visible = [block for block in blocks[start : start + _HIDDEN_AT_ONCE] if block.state is State.VISIBLE]
            self.hide(visible, State.REMOVED)
            removed += len(visible)
        if removed:
            await self._io.run(self._writing, self.slots.settle(), seconds=self.rules.io_seconds)
        return removed

    # --- what an earlier process left

    def _adopt(self, recovered: Sequence[Recovered]) -> None:
        """Takes in what was found, as old as it is; what is over its time goes with the next look."""
        behind = self._clock.time() - self._clock.monotonic()
        blocks = [
            Block(one.block_id, one.record, self._name, stored_at=min(one.stored_at - behind, self._clock.monotonic()))
            for one in recovered
        ]
        for block in self.index.adopt(blocks):
            self.discard(block)
        self._tell_stored(self.index.visible())

    def _tell_stored(self, blocks: Sequence[Block]) -> None:
        for watcher in self._watchers if blocks else ():
            watcher.stored(self._name, blocks)
