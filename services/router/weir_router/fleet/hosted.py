"""Executors that model hosts have started: asked for at intervals, so that they are found without a broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from weir_chassis.clock import Clock
from weir_router.fleet.membership import Place
from weir_router.fleet.model_hosts import ModelHosts


class HostedExecutors:
    """`changed` is called when there are others than before."""

    def __init__(
        self, hosts: ModelHosts, clock: Clock, changed: Callable[[], None], *, interval_seconds: float
    ) -> None:
        self._hosts, self._clock, self._changed = hosts, clock, changed
        self._interval_seconds = interval_seconds
        self._known: dict[str, Sequence[str]] = {}  # by host, as it said last

    @property
    def places(self) -> list[Place]:
        return [Place("executor", address) for addresses in self._known.values() for address in addresses]

    async def run(self) -> NoReturn:
        """For ever."""
        while True:
            await self.ask()
            await self._clock.sleep(self._interval_seconds)

    async def ask(self) -> None:
        """A host that is silent is believed to have what it had: whether that serves shows on its own connection."""
        before, told = dict(self._known), await self._hosts.executors()
        self._known |= {host: addresses for host, addresses in told.items() if addresses is not None}
        if self._known != before:
            self._changed()
