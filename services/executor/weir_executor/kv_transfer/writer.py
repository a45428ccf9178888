"""Full blocks on their way to the store: a bounded queue and one task that empties it in batches."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from threading import Lock

import grpc

from weir_chassis.breaker import Breaker
from weir_chassis.clock import Clock
from weir_chassis.telemetry import get_logger
from weir_executor.kv_transfer.hashes import BlockFormat, Namespaces, RecentHashes
from weir_executor.kv_transfer.transport import BlockTransport, Put, PutResult
from weir_executor.metrics import ExecutorMetrics
from weir_executor.step_output import FullBlock

# Blocks become full in bursts: a prefill fills many in one step, and a batch per burst costs one call instead of many.
_LINGER_SECONDS = 0.02
# One PutBlocks call carries about this much: seconds of a slow wire, so a call that fails loses little.
_BATCH_BYTES = 64 * 1024 * 1024
# A put's own limit.
_BATCH_BLOCKS = 4096


@dataclass(frozen=True, slots=True)
class WriterLimits:
    queue_bytes: int
    deadline_seconds: float
    bytes_per_second: float


class BlockWriter:
    def __init__(
        self,
        transport: BlockTransport,
        blocks: BlockFormat,
        limits: WriterLimits,
        *,
        block_seconds: Callable[[], float],
        namespaces: Namespaces,
        known: RecentHashes,
        metrics: ExecutorMetrics,
        clock: Clock,
        random: Random,
    ) -> None:
        """Needs a running event loop. `block_seconds`: what it takes to compute a block: a store that is short of room
        keeps what is dear; 0: not known."""
        self._transport, self._format, self._limits, self._clock = transport, blocks, limits, clock
        self._block_seconds = block_seconds
        self._namespaces, self._known, self._metrics = namespaces, known, metrics
        self._breaker = Breaker(clock, random)
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._lock = Lock()  # guards the two below
        self._queue: deque[FullBlock] = deque()
        self._queued_bytes = 0

    def wants(self, block_hash: bytes) -> bool:
        """Whether a full block is worth copying out: the store may have it, or nobody could send it. Any thread."""
        if block_hash in self._known:
            outcome = "known"
        elif self._breaker.rests:
            outcome = "breaker"
        elif self._queued_bytes + self._format.block_bytes > self._limits.queue_bytes:
            outcome = "queue_full"
        else:
            return True
        self._metrics.offers.labels(outcome).inc()
        return False

    def offer(self, blocks: Sequence[FullBlock]) -> None:
        """Queues what there is room for and drops the rest. Any thread; never blocks."""
        dropped = 0
        with self._lock:
            for block in blocks:
                if self._queued_bytes + len(block.payload) > self._limits.queue_bytes:
                    dropped += 1
                    continue
                self._queue.append(block)
                self._queued_bytes += len(block.payload)
        if dropped:
            self._metrics.offers.labels("queue_full").inc(dropped)
        self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Empties the queue for ever."""
        while True:
            await self._wake.wait()
            await self._clock.sleep(_LINGER_SECONDS)
            self._wake.clear()
            while batch := self._take():
                for blocks in self._by_owner(batch):
                    await self._put(blocks)

    def _take(self) -> list[FullBlock]:
        batch: list[FullBlock] = []
        size = 0
        with self._lock:
            while self._queue and size < _BATCH_BYTES and len(batch) < _BATCH_BLOCKS:
                block = self._queue.popleft()
                batch.append(block)
                size += len(block.payload)
            self._queued_bytes -= size
        return batch

    def _by_owner(self, batch: Sequence[FullBlock]) -> list[list[FullBlock]]:
        """One put is of one namespace, and charged to one tenant."""
        groups: dict[tuple[bytes, str], list[FullBlock]] = defaultdict(list)
        for block in batch:
            if block.block_hash in self._known:
                self._metrics.offers.labels("known").inc()
            else:
                groups[block.cache_scope, block.tenant].append(block)
        return list(groups.values())

    async def _put(self, blocks: Sequence[FullBlock]) -> None:
        """Whatever goes wrong, fewer blocks are stored."""
        if not self._breaker.allows():
            self._metrics.offers.labels("breaker").inc(len(blocks))
            return
        try:
            result = await self._send(blocks)
        except Exception as error:
            self._breaker.failed()
            self._metrics.offers.labels("failed").inc(len(blocks))
            if not isinstance(error, grpc.RpcError):
                get_logger().error("kv_put_failed", exc_info=error)
            return
        self._breaker.succeeded()
        self._note(result, blocks)

    async def _send(self, blocks: Sequence[FullBlock]) -> PutResult:
        put = Put(
            self._namespaces.of(blocks[0].cache_scope),
            blocks,
            tenant=blocks[0].tenant,
            block_size=self._format.block_size,
            prefill_seconds_per_block=self._block_seconds(),
        )
        size = put.size_bytes
        timeout = self._limits.deadline_seconds + size / self._limits.bytes_per_second
        result = await self._transport.put(put, timeout=timeout)
        self._metrics.offer_bytes.inc(size)
        return result

    def _note(self, result: PutResult, blocks: Sequence[FullBlock]) -> None:
        for outcome, count in (
            ("stored", result.stored),
            ("present", result.present),
            ("corrupt", result.corrupt),
            ("refused", result.refused),
        ):
            self._metrics.offers.labels(outcome).inc(count)
        # The answer counts blocks and does not name them, so only when all are held is each one known to be.
        if result.stored + result.present == len(blocks):
            self._known.add(block.block_hash for block in blocks)
