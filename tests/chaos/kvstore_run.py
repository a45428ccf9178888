"""Random puts, reads, leases and removals over three tiers that all go wrong, by many at once; the books at the end.

    PYTHONPATH=tests python -m chaos.kvstore_run --operations 1000000 --seed 7

An operation is one look, one block put or read, one removal, renewal or release. What is under an address is known
beforehand, so a single wrong byte is seen; what was committed is followed until it is evicted, expired or removed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from random import Random
from typing import Final

import structlog

from chaos import seeds
from fakes.chaotic_tiers import ChaoticSlots, ChaoticTier, Dice
from weir_chassis.errors import DeadlineExceeded, LeaseExpired, NotFound, Overloaded
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock
from weir_kvstore.bandwidth import Bandwidth
from weir_kvstore.block import Block
from weir_kvstore.checksum import checksum
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.mover import Lane
from weir_kvstore.policies.admission import Admission, AdmitAll, SecondUse
from weir_kvstore.policies.make import POLICIES
from weir_kvstore.put import Put, PutPiece, Puts
from weir_kvstore.reads import read_lease
from weir_kvstore.record import Address
from weir_kvstore.rules import Rules
from weir_kvstore.staging import PutBegin
from weir_kvstore.store import BlockStore, Bounds
from weir_kvstore.tenants import Quota, Quotas
from weir_kvstore.tier import Tier
from weir_kvstore.tiers.arena import ArenaSlots

# A thread that hangs is real, and so are these seconds.
_GIVEN_BACK_SECONDS: Final = 10.0
_CALLERS: Final = 12
_CHAINS, _BLOCKS = 40, 12
_NAMESPACES: Final = (b"n" * 16, b"o" * 16)
_BLOCK_BYTES: Final = 256
_SHARES: Final = {"put": 30, "read": 46, "look": 14, "remove": 3, "wait": 4, "sweep": 3}
_RAM_FAULTS: Final = {"bit flip": 0.002}
_DISK_FAULTS: Final = {
    **dict.fromkeys(("bit flip", "torn write", "reordered commit", "short read", "bit flip on reading"), 0.01),
    **dict.fromkeys(("EIO", "ENOSPC"), 0.003),
    "stall": 0.01,
    "hang": 0.0002,
}
_SHARED_FAULTS: Final = dict.fromkeys(
    ("wrong fingerprint", "stale epoch", "wrong tenant", "bit flip on reading", "promised too much"), 0.02
)


def payload_of(address: Address) -> bytes:
    return Random(bytes(address.namespace + address.block_hash)).randbytes(_BLOCK_BYTES)


class Watched:
    """What the local tiers hold, as they tell it."""

    def __init__(self) -> None:
        self.held: dict[str, set[Address]] = {"ram": set(), "disk": set()}
        self.hidden_blocks: Counter[str] = Counter()

    def stored(self, tier: str, blocks: Sequence[Block]) -> None:
        self.held[tier].update(block.address for block in blocks)

    def evicting(self, tier: str, blocks: Sequence[Block]) -> None:
        pass

    def hidden(self, tier: str, blocks: Sequence[Block]) -> None:
        self.hidden_blocks[tier] += len(blocks)
        self.held[tier].difference_update(block.address for block in blocks)


class Run:
    """One run. `counts` are of what was done and what came of it."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)
        self.counts: Counter[str] = Counter()
        self.clock = VirtualClock()
        self._one_at_a_time = asyncio.Lock()
        self.watched = Watched()
        self.faults = {
            tier: Dice(Random(self.dice.random()), rates)
            for tier, rates in (("ram", _RAM_FAULTS), ("disk", _DISK_FAULTS), ("redis", _SHARED_FAULTS))
        }
        self.chains = [
            [Address(namespace, self.dice.randbytes(16)) for _ in range(_BLOCKS)]
            for namespace in _NAMESPACES
            for _ in range(_CHAINS)
        ]
        self.payloads = {address: payload_of(address) for chain in self.chains for address in chain}
        self.store = self._make()
        self.puts = Puts(self.store, max_open=_CALLERS, idle_seconds=5)

    def _make(self) -> BlockStore:
        ledger, ids = LeaseLedger(self.clock), count()
        ram = self._tier("ram", ledger, blocks=120, ttl_seconds=40)
        disk = self._tier("disk", ledger, blocks=300, ttl_seconds=150)
        behind = self._tier("redis", ledger, blocks=400, ttl_seconds=200)
        slower: list[Tier] = [disk, ChaoticTier(behind, self.faults["redis"])]
        admissions: tuple[Admission, ...] = (AdmitAll(), SecondUse())
        lanes = [
            Lane(ram, tier, 1 << position, admission, Bandwidth(self.clock, None))
            for position, (tier, admission) in enumerate(zip(slower, admissions, strict=True))
        ]
        arena = ram.slots
        assert isinstance(arena, ChaoticSlots)
        assert isinstance(arena.slots, ArenaSlots)
        return BlockStore(
            ram,
            Bounds(max_live_leases=64),
            Random(self.dice.random()),
            new_lease_id=lambda: f"lease-{next(ids)}",
            slower=slower,
            lanes=lanes,
            view=arena.slots.view,
        )

    def _tier(self, name: str, ledger: LeaseLedger, *, blocks: int, ttl_seconds: float) -> LocalTier:
        policy = self.dice.choice(list(POLICIES))
        slots = ArenaSlots(blocks * _BLOCK_BYTES)
        rules = Rules(
            max_blocks=blocks,
            ttl_seconds=ttl_seconds,
            policy=policy,
            new_policy=POLICIES[policy],
            quotas=Quotas({"acme": Quota(blocks * _BLOCK_BYTES // 2), "zoo": Quota(share=3)}),
            io_seconds=0.02,
        )
        faulty = slots if name == "redis" else ChaoticSlots(slots, self.faults[name])
        return LocalTier(name, faulty, ledger, Random(self.dice.random()), rules)

    async def go(self, operations: int) -> Counter[str]:
        """Raises AssertionError where an invariant breaks."""
        self.store.watch(self.watched)
        await self.store.open()
        moving = asyncio.ensure_future(self.store.mover.run())
        await asyncio.gather(*(self._caller(operations) for _ in range(_CALLERS)))
        for faults in self.faults.values():
            faults.quiet = True
        await self.store.mover.drain()
        moving.cancel()
        await asyncio.wait([moving])
        await self._close_books()
        return self.counts

    async def _caller(self, operations: int) -> None:
        kinds, shares = list(_SHARES), list(_SHARES.values())
        while self.counts["operations"] < operations:
            kind = self.dice.choices(kinds, shares)[0]
            with suppress(Overloaded, LeaseExpired, NotFound, DeadlineExceeded):
                await getattr(self, f"_{kind}")(self.dice.choice(self.chains))
            self.counts[kind] += 1
            await asyncio.sleep(0)

    def _did(self, operations: int = 1) -> None:
        self.counts["operations"] += operations

    async def _put(self, chain: Sequence[Address]) -> None:
        length = self.dice.randint(1, len(chain))
        async with self.puts.open("put") as put:
            put.begin(PutBegin(chain[0].namespace, self.dice.choice(("acme", "zoo", "")), 16, self.dice.random()))
            for address, parent in zip(chain[:length], [b"", *(each.block_hash for each in chain)], strict=False):
                await self._send(put, address, parent)
                if self.dice.random() < 0.02:
                    self.counts["torn puts"] += 1
                    return
            put.commit()

    async def _send(self, put: Put, address: Address, parent: bytes) -> None:
        payload = self.payloads[address]
        right = checksum(payload)
        if self.dice.random() < 0.01:
            payload = payload[:-1] + bytes([payload[-1] ^ 1])
            self.counts["corrupt puts"] += 1
        for offset in (0, 100):
            chunk = payload[offset : 100 if not offset else len(payload)]
            await put.add(PutPiece(address.block_hash, parent, len(payload), right, offset, chunk))
            if self.dice.random() < 0.05:
                await asyncio.sleep(0)
        self._did()

    async def _read(self, chain: Sequence[Address]) -> None:
        skip = self.dice.choice((0, 0, 0, self.dice.randint(0, len(chain))))
        hashes = [address.block_hash for address in chain]
        seconds = self.dice.choice((5, 60))
        match = await self.store.match(
            chain[0].namespace, hashes, skip_blocks=skip, seconds=seconds, owner="read", block_size=16
        )
        self._did()
        if match.lease_id is None:
            return
        try:
            await self._check(match.lease_id, chain[skip : match.matched_blocks])
        finally:
            if self.dice.random() < 0.9:  # the others lapse
                self.store.leases.release(match.lease_id)
                self._did()

    async def _check(self, lease_id: str, leased: Sequence[Address]) -> None:
        """Every piece that comes is the next one, and right."""
        if self.dice.random() < 0.2:
            self.store.leases.renew(lease_id, 30)
            self._did()
        read = 0
        async for piece in read_lease(self.store, lease_id, owner="read"):
            address = leased[read]
            payload = self.payloads[address]
            self.counts["wrong hits"] += piece.record.address != address or bytes(piece.chunk) != payload
            read += 1
            self._did()
            if self.dice.random() < 0.05:
                await asyncio.sleep(0)
            if self.dice.random() < 0.01:
                return  # who asked has gone
        self.counts["blocks read"] += read
        self.counts["misses on reading"] += len(leased) - read

    async def _look(self, chain: Sequence[Address]) -> None:
        hashes = [address.block_hash for address in chain]
        await self.store.match(chain[0].namespace, hashes, skip_blocks=0, seconds=0, owner="look")
        self._did()

    async def _remove(self, chain: Sequence[Address]) -> None:
        hashes = [address.block_hash for address in self.dice.sample(chain, 3)]
        everything = self.dice.random() < 0.01
        await self.store.remove(chain[0].namespace, None if everything else hashes)
        self._did()

    async def _wait(self, _: Sequence[Address]) -> None:
        async with self._one_at_a_time:  # time does not go back
            await self.clock.advance(self.dice.choice((0.1, 1, 3)))
        self._did()

    async def _sweep(self, _: Sequence[Address]) -> None:
        self.store.sweep()
        self._did()

    async def _close_books(self) -> None:
        """Everything is where it is said to be, and right; nothing that nobody took away is gone; nothing is held."""
        await self.clock.advance(61)
        self.store.sweep()
        await self.store.mover.close()
        await self.store.promotions.close()
        for name in ("ram", "disk"):
            tier = self.store.local[name]
            tier.index.check_integrity()
            assert tier.slots.used_bytes == sum(block.size_bytes for block in tier.index.blocks())
            visible = {block.address for block in tier.index.visible()}
            self.counts["lost"] += len(self.watched.held[name] ^ visible)
            self.counts["lost"] += tier.counters.stored - self.watched.hidden_blocks[name] - len(visible)
        self.store.ledger.check_integrity()
        self.counts["leaks"] = await self._still_held()
        for faults in self.faults.values():
            self.counts.update({f"injected {kind}": times for kind, times in faults.injected.items()})
        for report in self.store.reports():
            for kind in ("corrupt", "evicted", "expired", "promoted", "demoted"):
                self.counts[kind] += getattr(report.counters, kind)
        await self.store.close()

    async def _still_held(self) -> int:
        """Leases and references that nobody gives back. A read that hung holds its block until its thread is back."""
        ends_at = time.monotonic() + _GIVEN_BACK_SECONDS
        while held := self._num_held():
            if time.monotonic() > ends_at:
                break
            await asyncio.sleep(0.01)
        return held

    def _num_held(self) -> int:
        references = (block.references for tier in self.store.local.values() for block in tier.index.blocks())
        return len(self.store.ledger.live()) + sum(references)


def summary(counts: Counter[str]) -> str:
    """One line: what was done, what went wrong by intent, and what must be zero."""
    injected = {key.removeprefix("injected "): n for key, n in sorted(counts.items()) if key.startswith("injected ")}
    faults = ", ".join(f"{kind} {n}" for kind, n in injected.items())
    return (
        f"operations {counts['operations']}, faults injected {sum(injected.values())} ({faults}), "
        f"found wrong {counts['corrupt']}, wrong hits {counts['wrong hits']}, "
        f"lost committed blocks {counts['lost']}, leaked leases {counts['leaks']}"
    )


def is_clean(counts: Counter[str]) -> bool:
    return not (counts["wrong hits"] or counts["lost"] or counts["leaks"])


def _go(seed: int, operations: int) -> Counter[str]:
    counts = asyncio.run(Run(seed).go(operations))
    assert is_clean(counts), summary(counts)
    return counts


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # the faults are our own
    total, seconds = seeds.run(__doc__, _go, operations=1_000_000, runs=10)
    told = (*_SHARES, "blocks read", "misses on reading", "evicted", "expired", "promoted", "demoted")
    print(", ".join(f"{name} {total[name]}" for name in told))
    print(summary(total) + f", {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
