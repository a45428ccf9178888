"""The workers that this router was told of, each kept connected; what is known of them is one snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from weir_chassis.health import model_name
from weir_chassis.server import Chassis
from weir_chassis.telemetry import get_logger
from weir_router.faults.breakers import Breakers
from weir_router.fleet.changes import Changes
from weir_router.fleet.executor_link import ExecutorLink
from weir_router.fleet.link import Link, LinkContext
from weir_router.fleet.postprocess_link import PostprocessLink
from weir_router.fleet.snapshot import FleetSnapshot, WorkerState
from weir_router.fleet.snapshots import Snapshots
from weir_router.fleet.tokenizer_link import TokenizerLink
from weir_router.metrics import RouterMetrics
from weir_router.regions import Residency
from weir_router.settings import RouterSettings

if TYPE_CHECKING:
    from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub


class Fleet:
    """`snapshot` for deciding; `executor`, `postprocessor` and `tokenizer_stub` for acting on what was decided.

    Nobody gets at a worker without saying where the request may go, and at none that is elsewhere.
    """

    def __init__(self, settings: RouterSettings, chassis: Chassis, metrics: RouterMetrics):
        self._clock, self._changes = chassis.clock, Changes()
        self.breakers = Breakers(
            settings.breaker_limits(),
            settings.max_ejected_share,
            clock=chassis.clock,
            random=chassis.random,
            metrics=metrics,
            on_change=self._changes.note_fact,
        )
        self._snapshots = Snapshots(self._changes, self.breakers.mark)
        context = LinkContext(
            settings,
            chassis.connect,
            chassis.clock,
            chassis.random.random,
            self._changed,
            self._changes,
            self.breakers,
            started_at=chassis.clock.monotonic(),
        )
        self._health, self._metrics = chassis.health, metrics
        self._executors = {address: ExecutorLink(address, context) for address in settings.executors}
        self._tokenizers = {address: TokenizerLink(address, context) for address in settings.tokenizers}
        self._postprocessors = {address: PostprocessLink(address, context) for address in settings.postprocessors}
        self._mismatched: frozenset[str] = frozenset()

    @property
    def links(self) -> list[Link]:
        return [*self._executors.values(), *self._tokenizers.values(), *self._postprocessors.values()]

    def snapshot(self) -> FleetSnapshot:
        """Immutable, and the same object until something is another."""
        links = self._executors.values(), self._tokenizers.values(), self._postprocessors.values()
        return self._snapshots.newest(self._clock.monotonic(), *links)

    def executor(self, address: str, residency: Residency) -> ExecutorLink:
        return self._executors[address].permitted(residency)

    def postprocessor(self, address: str, residency: Residency) -> PostprocessLink:
        return self._postprocessors[address].permitted(residency)

    def tokenizer_stub(self, address: str, residency: Residency) -> TokenizerServiceAsyncStub:
        return self._tokenizers[address].permitted(residency).stub

    def _changed(self) -> None:
        """A worker came, went or changed: what the world may know of it."""
        self._changes.note_fact()
        snapshot = self.snapshot()
        self._announce_models(snapshot)
        self._report_mismatches(snapshot)
        for kind in ("executor", "tokenizer", "postprocess"):
            serving = sum(link.kind == kind and link.state is WorkerState.SERVING for link in self.links)
            self._metrics.healthy_workers.labels(kind).set(serving)

    def _announce_models(self, snapshot: FleetSnapshot) -> None:
        for model in snapshot.known_models():
            self._health.set(model_name(model), snapshot.answers(model))

    def _report_mismatches(self, snapshot: FleetSnapshot) -> None:
        mismatched = frozenset(snapshot.mismatched())
        for address in sorted(mismatched - self._mismatched):
            get_logger().error("revision_mismatch", executor=address, consequence="it is given no requests")
        self._mismatched = mismatched


@asynccontextmanager
async def open_fleet(settings: RouterSettings, chassis: Chassis, metrics: RouterMetrics) -> AsyncIterator[Fleet]:
    """Connects to everybody and waits for nobody: a fleet that is empty or half there says so to each request."""
    fleet = Fleet(settings, chassis, metrics)
    for kind in ("executors", "tokenizers", "postprocessors"):
        if not getattr(settings, kind):
            get_logger().warning("fleet_is_incomplete", missing=kind, variable=f"WEIR_ROUTER_{kind.upper()}")
    async with AsyncExitStack() as stack:
        for link in fleet.links:
            stack.push_async_callback(link.close)
            chassis.background.start(link.run(), name=f"{link.kind}-link")
        yield fleet
