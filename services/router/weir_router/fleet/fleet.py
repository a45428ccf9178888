"""The workers that this router has heard of, each kept connected; what is known of them is one snapshot.

settings ┐
DNS ─────┼─▶ membership ─▶ links, opened and closed to match ─▶ snapshot
broker ──┘
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final, NoReturn

from weir_chassis.background import first_of
from weir_chassis.health import model_name
from weir_chassis.server import Chassis
from weir_chassis.telemetry import get_logger
from weir_router.faults.breakers import Breakers
from weir_router.fleet.changes import Changes
from weir_router.fleet.departures import Departures
from weir_router.fleet.executor_link import ExecutorLink
from weir_router.fleet.link import Link, LinkContext
from weir_router.fleet.links import Links, found
from weir_router.fleet.membership import KINDS, MAX_OF_A_KIND, Membership
from weir_router.fleet.postprocess_link import PostprocessLink
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.snapshots import Snapshots
from weir_router.fleet.sources import Sources, open_sources
from weir_router.fleet.tokenizer_link import TokenizerLink
from weir_router.fleet.views import WorkerState
from weir_router.metrics import RouterMetrics
from weir_router.providers.external import ExternalContext
from weir_router.providers.externals import Externals
from weir_router.regions import Residency
from weir_router.settings import RouterSettings

# Between two looks at what nobody tells of: leases that lapse, workers that have left and are idle at last.
_REFRESH_SECONDS: Final = 0.5


class Fleet:
    """`snapshot` for deciding; `executor`, `postprocessor` and `tokenizer` for acting on what was decided.

    Nobody gets at a worker without saying where the request may go, and at none that is elsewhere.
    """

    def __init__(self, settings: RouterSettings, chassis: Chassis, sources: Sources, metrics: RouterMetrics):
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
        self.sources, self._links = sources, Links(context, chassis.background)
        self.membership = Membership()
        self._departures = Departures()
        self._mismatched: frozenset[str] = frozenset()
        self._change = asyncio.Event()
        self.externals = Externals(
            chassis, ExternalContext(chassis.clock, chassis.random.random, self._changed, self._changes, self.breakers)
        )

    @property
    def links(self) -> list[Link]:
        return list(self._links)

    def snapshot(self, *, counted: bool = True) -> FleetSnapshot:
        """Immutable, and the same object until something is another. `counted`: see `Snapshots.newest`."""
        links = self._links
        return self._snapshots.newest(
            self._clock.monotonic(),
            links.executors.values(),
            links.tokenizers.values(),
            links.postprocessors.values(),
            self.externals.views,
            counted=counted,
        )

    def now(self) -> float:
        """Monotonic seconds, in which the links' times are."""
        return self._clock.monotonic()

    def refresh(self) -> None:
        """Opens and closes links until they are those of the members of now."""
        before, departed_before = self._links.models(), self.snapshot().departed
        membership = self.sources.membership(self._links.answering())
        if membership.left_out != self.membership.left_out:
            get_logger().error("fleet_is_too_large", left_out=dict(membership.left_out), limit=MAX_OF_A_KIND)
        self.membership = membership
        changed = self._links.match(membership.members)
        present, now = self._links.models(), self._clock.monotonic()
        self._departures.note(before - present, now)
        present |= self.externals.models()
        departed = self._departures.standing(present, now)
        if changed or departed != departed_before:
            self._forget_models(departed_before - departed - present)
            self._snapshots.departed = departed
            self._changed()

    async def run(self) -> NoReturn:
        """For ever: at once when a source says something else, and at intervals for what only time tells."""
        while True:
            self.sources.changed.clear()
            self.refresh()
            await first_of(self.sources.changed.wait(), self._clock.sleep(_REFRESH_SECONDS))

    async def close(self) -> None:
        await self.externals.close()
        await self._links.close()

    def executor(self, address: str, residency: Residency) -> ExecutorLink:
        return found(self._links.executors, address).permitted(residency)

    def postprocessor(self, address: str, residency: Residency) -> PostprocessLink:
        return found(self._links.postprocessors, address).permitted(residency)

    def tokenizer(self, address: str, residency: Residency) -> TokenizerLink:
        return found(self._links.tokenizers, address).permitted(residency)

    async def change(self) -> None:
        """Returns when a worker has come, gone or changed."""
        await self._change.wait()

    def _changed(self) -> None:
        """A worker came, went or changed: what the world may know of it."""
        self._changes.note_fact()
        self._change.set()
        self._change = asyncio.Event()
        snapshot = self.snapshot()
        self._announce_models(snapshot)
        self._report_mismatches(snapshot)
        for kind in KINDS:
            serving = sum(link.kind == kind and link.current_state() is WorkerState.SERVING for link in self._links)
            self._metrics.healthy_workers.labels(kind).set(serving)
        for outside, serving in self.externals.serving().items():
            self._metrics.healthy_workers.labels(outside).set(serving)

    def _announce_models(self, snapshot: FleetSnapshot) -> None:
        for model in snapshot.known_models():
            self._health.set(model_name(model), snapshot.answers(model))
        for model in snapshot.departed:
            self._health.set(model_name(model), False)

    def _forget_models(self, models: Iterable[str]) -> None:
        for model in models:
            self._health.remove(model_name(model))

    def _report_mismatches(self, snapshot: FleetSnapshot) -> None:
        mismatched = frozenset(snapshot.mismatched())
        for address in sorted(mismatched - self._mismatched):
            get_logger().error("revision_mismatch", executor=address, consequence="it is given no requests")
        self._mismatched = mismatched


@asynccontextmanager
async def open_fleet(settings: RouterSettings, chassis: Chassis, metrics: RouterMetrics) -> AsyncIterator[Fleet]:
    """Connects to everybody and waits for nobody: a fleet that is empty or half there says so to each request."""
    with open_sources(settings, chassis) as sources:
        fleet = Fleet(settings, chassis, sources, metrics)
        fleet.refresh()
        chassis.background.start(fleet.run(), name="follow_fleet")
        try:
            yield fleet
        finally:
            await fleet.close()
