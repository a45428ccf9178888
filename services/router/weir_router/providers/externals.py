"""All workers outside the suite that the routing file names now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NoReturn

from weir_chassis.server import Chassis
from weir_router.fleet.views import ExternalView, WorkerState
from weir_router.providers.call import ExternalCall
from weir_router.providers.config import ExternalTable, ExternalTables, ProviderTable, RouterTable
from weir_router.providers.external import ExternalContext, ExternalRequest, ExternalWorker
from weir_router.providers.remote_router import RemoteRouter
from weir_router.regions import Residency


class Externals:
    """None, until a file names some. Waits for nobody: who is not there yet says so to each request."""

    def __init__(self, chassis: Chassis, context: ExternalContext):
        self._chassis, self._context = chassis, context
        self._workers: dict[str, ExternalWorker] = {}
        self._probes: dict[str, asyncio.Task[NoReturn]] = {}
        # No longer named, with calls that live.
        self._retired: set[ExternalWorker] = set()

    @property
    def workers(self) -> Sequence[ExternalWorker]:
        return tuple(self._workers.values())

    def views(self, now: float) -> tuple[ExternalView, ...]:
        """At `now`, in monotonic seconds."""
        return tuple([worker.view(now) for worker in self._workers.values()])

    def serving(self) -> Mapping[str, int]:
        """How many of each kind take requests."""
        states = [(worker.kind, worker.state is WorkerState.SERVING) for worker in self._workers.values()]
        return {kind: sum(serves for of, serves in states if of == kind) for kind in ("provider", "router")}

    def models(self) -> set[str]:
        """Names of what they serve or have served."""
        return {model for worker in self._workers.values() for model in worker.models}

    def worker(self, address: str, residency: Residency) -> ExternalWorker:
        return self._workers[address].permitted(residency)

    def call(self, worker: ExternalWorker, asked: ExternalRequest) -> ExternalCall:
        """One request on it, which begins when it is submitted."""
        use = self._context.breakers.begin(worker.address, asked.model)
        return ExternalCall(worker, asked, use, self._chassis.background, self._chassis.clock)

    def apply(self, tables: ExternalTables) -> None:
        """Those that are another than before are begun anew. What runs on one that has gone, runs to its end there."""
        wanted: dict[str, ExternalTable] = {
            **{f"provider:{table.name}": table for table in tables.providers},
            **{f"router:{table.name}": table for table in tables.routers},
        }
        for address, worker in list(self._workers.items()):
            if wanted.get(address) != worker.table:
                self._retire(address)
        for address, table in wanted.items():
            if address not in self._workers:
                self._begin(self._make(table))
        self._context.on_change()

    def _make(self, table: ExternalTable) -> ExternalWorker:
        if isinstance(table, ProviderTable):
            from weir_router.providers.provider import Provider  # noqa: PLC0415  # aiohttp, only where it is needed

            return Provider(table, self._context)
        assert isinstance(table, RouterTable), table
        own_id = self._chassis.identity.instance().instance_id
        return RemoteRouter(table, self._context, self._chassis.connect, own_id)

    def _begin(self, worker: ExternalWorker) -> None:
        self._workers[worker.address] = worker
        probe = self._chassis.background.start(worker.run(), name=f"{worker.kind}-probe")
        self._probes[worker.address] = probe

    def _retire(self, address: str) -> None:
        self._probes.pop(address).cancel()
        self._context.breakers.forget(address)
        self._retired.add(worker := self._workers.pop(address))
        self._chassis.background.start(self._close_when_idle(worker), name=f"{worker.kind}-end")

    async def _close_when_idle(self, worker: ExternalWorker) -> None:
        await worker.idle()
        self._retired.discard(worker)
        await worker.close()

    async def close(self) -> None:
        for worker in (*self._workers.values(), *self._retired):
            await worker.close()
