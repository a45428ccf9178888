"""A rank's way to the store, on a thread with an event loop of its own: full blocks go there, and nothing waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from random import Random
from typing import Final

import grpc

from weir_chassis.channel import open_channel
from weir_chassis.clock import Clock
from weir_chassis.metrics import Metrics
from weir_executor.foreign.loop_thread import LoopThread
from weir_executor.kv_transfer import ArenaTransport, WriterLimits
from weir_executor.kv_transfer.copier import Copier, load_copier
from weir_executor.kv_transfer.hashes import Namespaces, RecentHashes
from weir_executor.kv_transfer.transport import BlockTransport
from weir_executor.kv_transfer.writer import BlockWriter
from weir_executor.metrics import ExecutorMetrics
from weir_executor.step_output import FullBlock
from weir_executor.trtllm.connector.layout import ShardLayout
from weir_executor.trtllm.connector.told import Told

_log = logging.getLogger(__name__)
_START_SECONDS, _CLOSE_SECONDS = 10.0, 5.0
# A put takes what it takes in the background, so its deadline only has to notice a store that hangs.
_PUT_SECONDS: Final = 5.0
# How often the log says what became of blocks, where anything did: nobody scrapes an engine's process.
_TELL_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class RankFormat:
    """A `BlockFormat`: what the bytes of one rank's blocks are."""

    block_bytes: int
    block_size: int
    kv_dtype: str
    kv_layout: str


class StoreLink:
    """A `Store` of `worker.py`. The store may be away: blocks are dropped then, and counted."""

    def __init__(
        self,
        make_transport: Callable[[], BlockTransport],
        blocks: RankFormat,
        shard: str,
        limits: WriterLimits,
        *,
        clock: Clock,
        random: Random,
    ) -> None:
        """`make_transport`: called on the link's own loop. `shard`: as `shard_namespace`'s."""
        self._thread = LoopThread(f"kvstore-{shard or 'link'}")
        self._shard, self._clock = shard, clock
        self._counts: dict[str, float] = {}
        self._writing: Future[None] | None = None
        self._metrics = ExecutorMetrics(Metrics("executor"))  # a registry of its own, read by `counts`
        started = self._thread.run(self._start(make_transport, blocks, limits, random))
        self._transport, self._writer = started.result(_START_SECONDS)
        self._writing = self._thread.run(self._run())

    def wants(self, block_hash: bytes) -> bool:
        """Any thread; never blocks."""
        return self._writer.wants(block_hash)

    def offer(self, blocks: Sequence[FullBlock]) -> None:
        """Any thread; never blocks."""
        self._writer.offer(blocks)

    def counts(self) -> dict[str, float]:
        """Blocks by what became of them: `stored`, `present`, `known`, `queue_full`, `breaker`, `failed`, …"""
        (family,) = self._metrics.offers.collect()
        return {each.labels["outcome"]: each.value for each in family.samples if each.name.endswith("_total")}

    def close(self) -> None:
        """What is under way is left, not waited for. Twice is once."""
        if self._writing is None:
            return
        self._writing.cancel()
        self._writing = None
        self._thread.run(self._transport.close()).result(_CLOSE_SECONDS)
        self._thread.close(_CLOSE_SECONDS)

    async def _start(
        self, make_transport: Callable[[], BlockTransport], blocks: RankFormat, limits: WriterLimits, random: Random
    ) -> tuple[BlockTransport, BlockWriter]:
        transport = make_transport()
        writer = BlockWriter(
            transport,
            blocks,
            limits,
            block_seconds=lambda: 0.0,  # a rank does not know what a step is for
            namespaces=Namespaces(blocks, self._shard),
            known=RecentHashes(),
            metrics=self._metrics,
            clock=self._clock,
            random=random,
        )
        return transport, writer

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._writer.run(), name="put-blocks")
            tasks.create_task(self._tell(), name="tell-counts")

    async def _tell(self) -> None:
        while True:
            await self._clock.sleep(_TELL_SECONDS)
            if (counts := self.counts()) != self._counts:
                self._counts = counts
                told = ", ".join(f"{outcome} {count:.0f}" for outcome, count in sorted(counts.items()))
                _log.info("blocks of %s to the kvstore since start: %s", self._shard or "the one rank", told)


class ChanneledTransport(ArenaTransport):
    """With a channel that is its own."""

    def __init__(self, address: str, clock: Clock, copier: Copier) -> None:
        """On a running event loop."""
        self._channel: grpc.aio.Channel = open_channel(address)
        super().__init__(self._channel, clock, copier)

    async def close(self) -> None:
        await super().close()
        await self._channel.close()


def store_link(told: Told, layout: ShardLayout, shard: str, *, clock: Clock, random: Random) -> StoreLink:
    limits = WriterLimits(told.queue_bytes, _PUT_SECONDS, told.bytes_per_second)
    blocks = RankFormat(layout.block_bytes, told.block_size, layout.kv_dtype, layout.kv_layout)
    copier = load_copier()

    def make_transport() -> BlockTransport:
        return ChanneledTransport(told.kvstore_address, clock, copier)

    return StoreLink(make_transport, blocks, shard, limits, clock=clock, random=random)
