"""A connector's two halves on one to three ranks, a real store behind them, and everything between them going wrong.

    PYTHONPATH=tests python -m chaos.connector_run --operations 1000000 --seed 7

An operation is one call of a hook by the engine, in the documented order. What a request finds in its blocks follows
from its tokens, so a wrong one is seen; whoever is neither running nor told of within a bound is parked for ever; what
is leased is counted when all is over. A copy into the engine that fails ends the engine, and another one begins.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Final

import structlog

from chaos import seeds
from fakes.chaotic_tiers import Dice
from fakes.in_process_store import FAULTS, InProcessStore
from fakes.trtllm.chaos import RANK_FAULTS, FaultyView, SlowCopies, SlowThreads
from fakes.trtllm.connector import connector_library
from fakes.trtllm.ranks import Ranks
from weir.kvstore.v1.block_hash import HashScope, block_hashes, scope_root
from weir_chassis.leases import LeaseLedger
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock
from weir_executor.engine import EngineLoad
from weir_executor.foreign.salts import private_salt, shared_salt
from weir_executor.kv_transfer import HeldPrefix, LoaderLimits, LoadPlan, WriterLimits
from weir_executor.kv_transfer.hashes import Namespaces, RecentHashes
from weir_executor.kv_transfer.loader import PrefixLoader
from weir_executor.kv_transfer.shards import ShardedTransport, shard_names
from weir_executor.kv_transfer.writer import BlockWriter
from weir_executor.metrics import ExecutorMetrics
from weir_executor.trtllm.connector.area import Area
from weir_executor.trtllm.connector.entry import Rank, scheduler_class, worker_class
from weir_executor.trtllm.connector.layout import ShardLayout
from weir_executor.trtllm.connector.leader import Leader
from weir_executor.trtllm.connector.names import StagedName
from weir_executor.trtllm.connector.store_link import RankFormat
from weir_executor.trtllm.connector.worker import LoadFailedError, RankWorker
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.policies.make import POLICIES
from weir_kvstore.put import Puts
from weir_kvstore.rules import Rules
from weir_kvstore.store import BlockStore, Bounds
from weir_kvstore.tiers.arena import ArenaSlots

_BLOCK_SIZE: Final = 4
_FAMILIES: Final = 30
_STORE_BYTES: Final = 96 << 10
_ROOTS: Final = tuple(scope_root(HashScope("m", "r", "t", tenant_salt=salt)) for salt in ("", "acme"))
# Iterations that anybody may be parked: far more than all that waits for something is made to wait.
_MOST_PARKED: Final = 10_000
# Each of these ends the engine; nothing else may.
_DEADLY: Final = ("copy in fails", "load hangs", "lease cannot be read")
_STORE_FAULTS: Final = {**dict.fromkeys(FAULTS, 0.005), "store sends other bytes": 0.002}
_RANK_FAULTS: Final = {
    **dict.fromkeys(RANK_FAULTS, 0.002),
    **dict.fromkeys(_DEADLY, 0.001),
    "copy out hangs": 0.0005,
}
_HERE: Final = {"no room for a prefix": 0.01, "prefix dropped too soon": 0.02}


@dataclass(eq=False)
class _Asked:
    """A request outside the engine."""

    key: int
    tokens: list[int]
    salt: str
    max_tokens: int
    held: HeldPrefix | None = None
    staged: StagedName | None = None


class Service:
    """One process of ours with its engine, from its start to its end or the engine's."""

    def __init__(self, run: Run, folder: Path) -> None:
        dice = run.dice
        self._run, self._dice, self._clock = run, dice, run.clock
        self._area = Area(folder, max_bytes=8 << 10)
        self._threads = SlowThreads(run.faults["ranks"], Random(dice.random()))
        if dice.random() < 0.2:
            run.num_ranks = dice.choice((1, 2, 3))  # what others have stored is nothing to it
        self._num_ranks, self._newer = run.num_ranks, dice.random() < 0.5
        self.writers: list[asyncio.Task[None]] = []
        number = count()
        library = connector_library(lambda: next(number))
        self._leader = Leader(
            FaultyView(run.faults["ranks"], self._area.path, library.salt_id),
            block_size=_BLOCK_SIZE,
            sync_blocks=dice.choice((0, 2, 100)),
        )
        scheduler = scheduler_class(library, lambda _: self._leader)(None)
        make = worker_class(library, self._make_rank)
        self.ranks = Ranks(
            scheduler,
            [make(None) for _ in range(self._num_ranks)],
            num_blocks=dice.choice((24, 60)),
            block_size=_BLOCK_SIZE,
            newer=self._newer,
            chunk_tokens=dice.choice((8, 20, 1000)),
            max_running=6,
        )
        self._blocks = self._format(self._area.layout(self._num_ranks), self._num_ranks)
        self._namespaces = Namespaces(self._blocks)
        transport = ShardedTransport(run.transport, shard_names(self._num_ranks))
        load = EngineLoad(0, 0, 0, 0, 0, 0, 0, 0, 0.0)
        engine: Any = SimpleNamespace(info=self._blocks, load=lambda: load)
        limits = LoaderLimits(0.25, 1e6, min_blocks=1, budget_bytes=1 << 16, max_loads=8)
        self._loader = PrefixLoader(
            transport, engine, limits, known=RecentHashes(), metrics=run.metrics, clock=run.clock, random=dice
        )
        self._waiting: list[_Asked] = []
        self._inside: dict[int, _Asked] = {}
        self._arriving: set[asyncio.Task[None]] = set()
        self._keys = count(1)

    async def live(self, operations: int) -> None:
        """Until the engine dies of a load, or there were so many operations. Raises LoadFailedError."""
        began = self._run.counts["operations"]
        while began + self.ranks.counts["operations"] < operations:
            await self._turn()
        for key in list(self._inside):
            self.ranks.cancel(key)
        while self.ranks.running or self.ranks.parked or self.ranks.saving:
            await self._turn(arrivals=False)
        self.ranks.iterate()  # the leases of the last loads
        self._run.counts["leases"] += self._leader.leases + self._leader.requests + self._area.sweep(self._clock.time())

    async def close(self) -> None:
        """Whatever state it is in."""
        for task in [*self._arriving, *self.writers]:
            task.cancel()
        await asyncio.gather(*self._arriving, *self.writers, return_exceptions=True)
        for asked in [*self._waiting, *self._inside.values()]:
            self._let_go(asked)
        await self._loader.close()
        await self._clock.advance(0.1)  # for loads that were just cancelled to end
        for worker in self.ranks.workers:
            worker.close()
        self._run.counts["leases"] += self._loader.held_bytes + self._area.staged_bytes
        self._area.close()
        self._run.counts.update(self.ranks.counts)
        self._run.counts.update({f"offer {name}": times for name, times in self._leader.counts.items()})
        for worker in self.ranks.workers:
            self._run.counts.update({f"blocks {name}": times for name, times in worker.worker.counts.items()})

    def _make_rank(self, _: object, number: int) -> Rank:
        def connect(layout: ShardLayout) -> BlockWriter:
            blocks = self._format(layout, 1)
            writer = BlockWriter(
                self._run.transport,
                blocks,
                WriterLimits(queue_bytes=40 * layout.block_bytes, deadline_seconds=1, bytes_per_second=1e6),
                block_seconds=lambda: 0.0,
                namespaces=Namespaces(blocks, shard_names(self._num_ranks)[number]),
                known=RecentHashes(200),
                metrics=self._run.metrics,
                clock=self._clock,
                random=Random(self._dice.random()),
            )
            self.writers.append(asyncio.ensure_future(writer.run()))
            return writer

        worker = RankWorker(
            FaultyView(self._run.faults["ranks"], self._area.path),
            rank=number,
            ranks=self._num_ranks,
            kv_dtype="auto",
            max_copying_bytes=2048,
            connect=connect,
            run=self._threads.submit,
            clock=self._clock,
            make_copies=partial(SlowCopies, self._run.faults["ranks"], Random(self._dice.random())),
        )
        return Rank(worker, lambda: None)

    @staticmethod
    def _format(layout: ShardLayout, ranks: int) -> RankFormat:
        return RankFormat(layout.block_bytes * ranks, _BLOCK_SIZE, layout.kv_dtype, layout.kv_layout)

    # ── one turn ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _turn(self, *, arrivals: bool = True) -> None:
        dice = self._dice
        if arrivals and len(self._arriving) + len(self._waiting) < 8:
            task = asyncio.ensure_future(self._arrive(self._draw_request()))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)
        await self._clock.advance(dice.choice((0.001, 0.01, 0.02, 0.05)) if arrivals else 0.5)
        if arrivals:
            self._admit()
        if self._inside and dice.random() < 0.05:
            self._run.counts["aborts"] += 1
            self.ranks.cancel(dice.choice(list(self._inside)), at_once=not self._newer)
        for live in self.ranks.iterate():
            self._end(live.request_id)
        for key in [key for key in self._inside if key in self.ranks.saving]:
            self._end(key)  # aborted while it was loaded
        self._threads.turn()
        if dice.random() < 0.1:
            dice.choice(self.ranks.workers).worker.end_saves()
        if dice.random() < 0.01:
            self._area.sweep(self._clock.time())
            self._run.store.sweep()
        self._run.toggle_outage()
        self._look_for_parked()

    def _draw_request(self) -> _Asked:
        dice = self._dice
        family, root = dice.randrange(_FAMILIES), dice.choice(_ROOTS)
        common = Random(family).choices(range(3, 90), k=40)
        tokens = common[: dice.randint(3, 40)] + dice.choices(range(3, 90), k=dice.randint(0, 9))
        key = next(self._keys)
        salt = shared_salt(root) if dice.random() < 0.9 else private_salt(key)
        # Some never finish by themselves.
        return _Asked(key, tokens, salt, 80 if dice.random() < 0.01 else dice.randint(1, 6))

    async def _arrive(self, asked: _Asked) -> None:
        """As the service does: from the store to this host, before the engine hears of it."""
        if len(asked.salt) == 32:
            root = bytes.fromhex(asked.salt)
            self._area.note_scope(root)
            hashes = block_hashes(root, asked.tokens, _BLOCK_SIZE)
            local = len(self.ranks.blocks.match(asked.salt, asked.tokens))
            usable = hashes[: (len(asked.tokens) - 1) // _BLOCK_SIZE]
            plan = LoadPlan(self._namespaces.of(root), usable[:local], usable[local:])
            if plan.block_hashes and self._loader.worth_asking(plan):
                asked.held = await self._loader.load(plan)
            if asked.held is not None:
                self._stage(asked, hashes)
        self._waiting.append(asked)

    def _stage(self, asked: _Asked, hashes: Sequence[bytes]) -> None:
        assert asked.held is not None
        if not self._run.faults["service"]("no room for a prefix"):
            with suppress(OSError):
                asked.staged = self._area.stage(asked.held.prefix, hashes)
        if asked.staged is not None and self._run.faults["service"]("prefix dropped too soon"):
            self._area.drop(asked.staged)
            asked.staged = None

    def _admit(self) -> None:
        while self._waiting:
            asked = self._waiting[0]
            if self.ranks.admit(asked.key, asked.tokens, asked.salt, asked.max_tokens) is None:
                return
            self._inside[asked.key] = self._waiting.pop(0)
            self._run.counts["requests"] += 1

    def _end(self, key: int) -> None:
        if (asked := self._inside.pop(key, None)) is not None:
            self._let_go(asked)

    def _let_go(self, asked: _Asked) -> None:
        if asked.staged is not None:
            self._area.drop(asked.staged)
        if asked.held is not None:
            asked.held.release()

    def _look_for_parked(self) -> None:
        for live in (*self.ranks.parked.values(), *self.ranks.saving.values()):
            if self.ranks.iteration - live.since > _MOST_PARKED:
                self._run.counts["parked forever"] += 1
                raise AssertionError(f"request {live.request_id} is parked for ever")


class Run:
    """One run of one seed."""

    def __init__(self, seed: int) -> None:
        self.dice, self.counts, self.clock = Random(seed), Counter[str](), VirtualClock()
        rates: Mapping[str, Mapping[str, float]] = {"store": _STORE_FAULTS, "ranks": _RANK_FAULTS, "service": _HERE}
        self.faults = {name: Dice(Random(self.dice.random()), each) for name, each in rates.items()}
        self.metrics, self.num_ranks = ExecutorMetrics(Metrics("chaos")), self.dice.choice((1, 2, 3))
        self.store = self._make_store()
        puts = Puts(self.store, max_open=4, idle_seconds=5)
        self.transport = InProcessStore(self.store, puts, self.faults["store"], self.clock, Random(self.dice.random()))

    async def go(self, operations: int) -> Counter[str]:
        """Raises AssertionError where anybody is parked for ever."""
        await self.store.open()
        with tempfile.TemporaryDirectory(dir=_memory()) as folder:
            while self.counts["operations"] < operations:
                service, deadly = Service(self, Path(folder)), self._deadly()
                try:
                    # Also without a fault an engine does not live for ever.
                    await service.live(min(operations, self.counts["operations"] + self.dice.choice((1000, 4000))))
                except LoadFailedError:
                    self.counts["engine deaths"] += 1
                    if self._deadly() == deadly:  # then it is ours
                        raise
                finally:
                    await service.close()
            self.counts["leases"] += len(list(Path(folder).iterdir()))
        await self.clock.advance(61)
        self.store.sweep()
        self.counts["leases"] += len(self.store.ledger.live())
        await self.store.close()
        for faults in self.faults.values():
            self.counts.update({f"injected {kind}": times for kind, times in faults.injected.items()})
        (tier,) = self.store.reports()
        self.counts.update(evicted=tier.counters.evicted, stored=tier.counters.stored)
        self.counts["breaker"] = sum(map(_by_breaker, (self.metrics.loads, self.metrics.offers)))
        return self.counts

    def toggle_outage(self) -> None:
        """Now and then nobody hears of the store for a while: long enough for breakers to open, and to close again."""
        away = self.transport.is_away
        if self.dice.random() < (0.05 if away else 0.001):
            self.transport.is_away = not away
            self.counts["outages"] += not away

    def _deadly(self) -> int:
        return sum(self.faults["ranks"].injected[kind] for kind in _DEADLY)

    def _make_store(self) -> BlockStore:
        """One tier, too small for what is put there."""
        ids, policy = count(), self.dice.choice(list(POLICIES))
        rules = Rules(max_blocks=1000, ttl_seconds=600, policy=policy, new_policy=POLICIES[policy], io_seconds=0.0)
        ram = LocalTier("ram", ArenaSlots(_STORE_BYTES), LeaseLedger(self.clock), Random(self.dice.random()), rules)
        return BlockStore(
            ram, Bounds(max_live_leases=48), Random(self.dice.random()), new_lease_id=lambda: f"lease-{next(ids)}"
        )


def _by_breaker(outcomes: Any) -> int:
    """How often the store was not asked, because it had just failed several times."""
    (family,) = outcomes.collect()
    told = [each for each in family.samples if each.name.endswith("_total")]
    return int(sum(each.value for each in told if each.labels["outcome"] == "breaker"))


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def summary(counts: Counter[str]) -> str:
    """One line: what was done, what went wrong by intent, and what must be zero."""
    injected = {key.removeprefix("injected "): n for key, n in sorted(counts.items()) if key.startswith("injected ")}
    faults = ", ".join(f"{kind} {n}" for kind, n in injected.items())
    return (
        f"operations {counts['operations']}, faults injected {sum(injected.values())} ({faults}), "
        f"outages {counts['outages']} (held back by a breaker {counts['breaker']}), "
        f"requests {counts['requests']}, aborts {counts['aborts']}, engine deaths {counts['engine deaths']}, "
        f"prefixes offered {counts['offer hit']}, blocks loaded {counts['blocks loaded']}, "
        f"saved {counts['blocks saved']}, dropped {counts['blocks dropped']}, "
        f"wrong hits {counts['wrong hits']}, parked forever {counts['parked forever']}, leases {counts['leases']}"
    )


def is_clean(counts: Counter[str]) -> bool:
    return not (counts["wrong hits"] or counts["parked forever"] or counts["leases"])


def _go(seed: int, operations: int) -> Counter[str]:
    counts = asyncio.run(Run(seed).go(operations))
    assert is_clean(counts), summary(counts)
    return counts


def _so_far(total: Counter[str]) -> str:
    return f"operations {total['operations']}, requests {total['requests']}, wrong hits {total['wrong hits']}"


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # the faults are our own
    logging.disable(logging.CRITICAL)
    total, seconds = seeds.run(__doc__, _go, operations=1_000_000, runs=10, note=_so_far)
    print(summary(total) + f", {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
