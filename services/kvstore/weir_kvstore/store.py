"""The tiers together: what is matched, leased, brought up, removed, over all of them.

    MatchPrefix   RAM and disk by their indexes, in this turn of the event loop; shared tiers are asked for the rest
    GetBlocks     reads.py: from RAM where there is room, brought up by promotions.py
    PutBlocks     put.py: into RAM

What is in RAM and on disk is leased by references to its blocks. Of a shared tier's blocks a lease promises only that
they are right or a miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from random import Random
from typing import Final

from weir_kvstore.block import Block
from weir_kvstore.chains import Chain, Range, look_up
from weir_kvstore.leases import Elsewhere, Leased, ReadLeases
from weir_kvstore.local_tier import LocalTier, Watcher
from weir_kvstore.mover import Lane, Mover
from weir_kvstore.promotions import Promotions
from weir_kvstore.record import Address, Bytes
from weir_kvstore.shared_tiers import SharedTiers
from weir_kvstore.tier import Tier, TierReport

# A chain may lie by turns in local and shared tiers; each turn costs a round trip.
_MAX_ASKED: Final = 4
# Telling policies of so many uses takes some milliseconds; the sweep tells of fewer.
_SETTLED_BLOCKS: Final = 4096
_SETTLE_SECONDS: Final = 0.005
_SIZE, _TIER = attrgetter("size_bytes"), attrgetter("tier")


@dataclass(frozen=True, slots=True)
class Match:
    matched_blocks: int  # leading blocks, those skipped among them
    lease_id: str | None = None
    leased_bytes: int = 0  # as far as they are known: shared tiers do not tell
    ranges: Sequence[Range] = ()  # where the leased blocks are


@dataclass(frozen=True, slots=True)
class Bounds:
    """What this store may hold besides its tiers' blocks, and what it does not look at."""

    max_live_leases: int
    min_prefix_tokens: int = 0  # shorter prefixes are neither looked up nor stored


class BlockStore:
    """Blocks by their address; leased blocks stay."""

    def __init__(
        self,
        ram: LocalTier,
        bounds: Bounds,
        random: Random,
        *,
        new_lease_id: Callable[[], str],
        slower: Sequence[Tier] = (),
        lanes: Sequence[Lane] = (),
        view: Callable[[int], Bytes] | None = None,
    ) -> None:
        """`slower`: the tiers behind RAM, fastest first, opened and closed by the store; `lanes`: the ways into them.

        `view`: the bytes of a block in RAM, by its id, without waiting; without it nobody is copied while leaving.
        """
        self.ram = ram
        self.ledger = ram.ledger
        self.bounds = bounds
        self.tiers: tuple[Tier, ...] = (ram, *slower)
        self.local = {tier.name: tier for tier in self.tiers if isinstance(tier, LocalTier)}
        shared = [tier for tier in slower if not isinstance(tier, LocalTier)]
        self._shared = SharedTiers(shared, self.ledger.clock, random)
        self.account: Callable[[str], str] = str  # whose quota a tenant's blocks are charged to
        self.promotions = Promotions(ram, slower)
        self.mover = Mover(ram, lanes, view)
        self.watch(self.mover)
        self.leases = ReadLeases(
            self.ledger, max_live=bounds.max_live_leases, new_id=new_lease_id, give_back=self.release
        )
        self._settling: asyncio.TimerHandle | None = None
        self.saved_seconds = 0.0  # of prefill, by what was read

    async def open(self) -> None:
        """Finds what earlier processes left in tiers that outlive them."""
        for tier in self.tiers:
            await tier.open()

    async def reopen(self) -> None:
        """Tries again with local tiers that could not be opened."""
        for tier in self.local.values():
            await tier.open()

    def watch(self, watcher: Watcher) -> None:
        """It is told what happens in local tiers."""
        for tier in self.local.values():
            tier.watch(watcher)

    def sweep(self) -> None:
        """What is due whether anybody calls or not: to be called every now and then."""
        self.ledger.expire()
        for tier in self.local.values():
            tier.sweep()
        self.mover.sweep()

    async def close(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        await self.promotions.close()
        await self.mover.close()
        for tier in self.tiers:
            await tier.close()

    async def match(
        self,
        namespace: bytes,
        block_hashes: Sequence[bytes],
        *,
        skip_blocks: int,
        seconds: float,
        owner: str,
        block_size: int = 0,
        local_only: bool = False,
    ) -> Match:
        """The longest held prefix, leased for `seconds`; zero seconds only look. Raises Overloaded.

        The caller holds the first `skip_blocks` itself: wherever they are held here too, they only count as used.
        Waits only for shared tiers, and for them only where the local ones lack something; `local_only`: not at all.
        """
        if seconds > 0:
            self.leases.require_place()
        wanted = block_hashes[skip_blocks:]
        if 0 < len(block_hashes) * block_size < self.bounds.min_prefix_tokens:
            return Match(skip_blocks)
        chain = await self._find(namespace, wanted, local_only)
        self._count(chain, len(wanted))
        self._touch(look_up(self.local.values(), namespace, block_hashes[:skip_blocks]))
        self.mover.used(chain.blocks)
        matched = skip_blocks + len(chain.blocks)
        if not chain.blocks or seconds <= 0:
            self._touch(chain)
            return Match(matched)
        self.leases.require_place()  # others may have taken it meanwhile
        leased = tuple(chain.blocks)
        for tier, blocks in self._by_tier(chain, leased):
            tier.refer(blocks)  # their time starts anew when they are released
        lease_id = self.leases.grant(leased, owner=owner, seconds=seconds)
        self._settle_soon()
        return Match(matched, lease_id, sum(map(_SIZE, leased)), chain.ranges)

    def find(self, address: Address) -> Block | None:
        """The block in the fastest local tier that has it."""
        found = (tier.find(address) for tier in self.local.values())
        return next((block for block in found if block is not None), None)

    async def remove(self, namespace: bytes, block_hashes: Iterable[bytes] | None, *, local_only: bool = False) -> int:
        """Hides these blocks, or what the whole namespace holds, in all tiers; how many the one with the most had.

        What is on its way from one tier to another is waited for, and hidden where it has arrived.
        """
        addresses = None if block_hashes is None else {Address(namespace, one) for one in block_hashes}
        tiers = tuple(self.local.values()) if local_only else self.tiers
        removed = await _remove(tiers, namespace, addresses)
        if len(self.tiers) > 1:
            await self._moved(lambda one: one.namespace == namespace if addresses is None else one in addresses)
            await _remove(tiers, namespace, addresses)
        return removed

    def release(self, leased: Sequence[Leased]) -> None:
        """Gives back one reference to each that is in a local tier."""
        if len(set(map(_TIER, leased))) == 1 and leased[0].tier in self.local:
            self.local[leased[0].tier].release(leased)  # type: ignore[arg-type]  # as they were referred to
            return
        for name, blocks in groupby(leased, _TIER):
            if name in self.local:
                self.local[name].release([block for block in blocks if isinstance(block, Block)])

    def reports(self) -> list[TierReport]:
        """Of all tiers, fastest first. Never waits."""
        return [tier.report() for tier in self.tiers]

    async def _find(self, namespace: bytes, wanted: Sequence[bytes], local_only: bool) -> Chain:
        chain = look_up(self.local.values(), namespace, wanted)
        elsewhere: dict[int, Elsewhere] = {}
        for _ in range(_MAX_ASKED if self._shared and not local_only else 0):
            start = len(chain.blocks)
            if start == len(wanted):
                break
            tier, count = await self._shared.match(namespace, wanted[start:])
            for position in range(start, start + count):
                elsewhere[position] = Elsewhere(Address(namespace, wanted[position]), tier)
            # All of it again: time has passed, and local blocks may have come and gone.
            chain = look_up(self.local.values(), namespace, wanted, elsewhere)
            if not count:
                break
        return chain

    def _count(self, chain: Chain, wanted_blocks: int) -> None:
        """A tier is asked for what the faster ones lack; shared tiers count by themselves."""
        for name, tier in self.local.items():
            hits = sum(each.blocks for each in chain.ranges if each.tier == name)
            wanted_blocks -= hits
            tier.counters.hits += hits
            tier.counters.misses += wanted_blocks

    def _settle_soon(self) -> None:
        """What was noted is told in a turn of its own, when whoever has looked up has got the answer."""
        noted = sum(tier.index.num_noted for tier in self.local.values())
        if noted > _SETTLED_BLOCKS and self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        self._settling = None
        for tier in self.local.values():
            tier.index.settle()

    def _touch(self, chain: Chain) -> None:
        for tier, blocks in self._by_tier(chain, chain.blocks):
            tier.index.touch(blocks[::-1])

    def _by_tier(self, chain: Chain, leased: Sequence[Leased]) -> Iterator[tuple[LocalTier, Sequence[Block]]]:
        """The chain's blocks that are in local tiers, range by range."""
        start = 0
        for each in chain.ranges:
            if each.tier in self.local:
                # All of it is the very same object, which is cheaper to give back.
                yield self.local[each.tier], leased[start : start + each.blocks]  # type: ignore[misc]
            start += each.blocks

    async def _moved(self, concern: Callable[[Address], bool]) -> None:
        await self.promotions.finished(concern)
        await self.mover.finished(concern)


async def _remove(tiers: Sequence[Tier], namespace: bytes, addresses: set[Address] | None) -> int:
    if addresses is None:
        return max([await tier.remove_namespace(namespace) for tier in tiers])
    return max([await tier.remove(addresses) for tier in tiers])
