"""Both directions together: what the rest of the executor sees of the kvstore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from weir_chassis.clock import Clock
from weir_executor.engine import Engine
from weir_executor.kv_transfer.hashes import Namespaces, RecentHashes
from weir_executor.kv_transfer.loader import PrefixLoader
from weir_executor.kv_transfer.plan import MAX_MATCHED_BLOCKS, HeldPrefix, LoaderLimits, LoadPlan
from weir_executor.kv_transfer.transport import BlockTransport
from weir_executor.kv_transfer.writer import BlockWriter, WriterLimits
from weir_executor.metrics import ExecutorMetrics
from weir_executor.request import GenerationRequest
from weir_executor.step_output import FullBlock


@dataclass(frozen=True, slots=True)
class TransferLimits:
    load: LoaderLimits
    put: WriterLimits


class KvTransfer:
    """`plan` and `load` on the event loop, `wants` and `offer` on any thread, `run` for ever in the background."""

    def __init__(
        self,
        transport: BlockTransport,
        engine: Engine,
        limits: TransferLimits,
        *,
        metrics: ExecutorMetrics,
        clock: Clock,
        random: Random,
    ) -> None:
        self._transport, self._engine, info = transport, engine, engine.info
        self._namespaces, known = Namespaces(info), RecentHashes()
        self._loader = PrefixLoader(
            transport, engine, limits.load, known=known, metrics=metrics, clock=clock, random=random
        )
        self._writer = BlockWriter(
            transport,
            info,
            limits.put,
            block_seconds=self._block_seconds,
            namespaces=self._namespaces,
            known=known,
            metrics=metrics,
            clock=clock,
            random=random,
        )

    def plan(self, request: GenerationRequest) -> LoadPlan | None:
        """What to load for this request; None when all there is to gain is less than the asking costs."""
        if not request.block_hashes:
            return None
        # The last token is always computed, because its logits give the next one.
        full_blocks = (len(request.token_ids) - 1) // self._engine.info.block_size
        usable = request.block_hashes[: min(full_blocks, MAX_MATCHED_BLOCKS)]
        local = self._engine.cached_prefix_blocks(usable)
        plan = LoadPlan(self._namespaces.of(request.cache_scope), usable[:local], usable[local:])
        return plan if self._loader.worth_asking(plan) else None

    async def load(self, plan: LoadPlan) -> HeldPrefix | None:
        """Never raises but CancelledError: what does not come is computed."""
        return await self._loader.load(plan)

    def wants(self, block_hash: bytes) -> bool:
        """Whether a full block is worth copying out of the engine and offering. Any thread; never blocks."""
        return self._writer.wants(block_hash)

    def offer(self, blocks: Sequence[FullBlock]) -> None:
        self._writer.offer(blocks)

    async def run(self) -> None:
        """Sends what was offered, for ever."""
        await self._writer.run()

    async def close(self) -> None:
        await self._loader.close()
        await self._transport.close()

    def _block_seconds(self) -> float:
        learned = self._engine.load().prefill_token_seconds
        return learned.mean * self._engine.info.block_size if learned else 0.0

    @property
    def held_bytes(self) -> int:
        """Of prefixes on their way, or not yet taken by the engine."""
        return self._loader.held_bytes
