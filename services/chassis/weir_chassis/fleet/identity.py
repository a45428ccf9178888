"""What this process is: the one `Instance` that it answers with and announces."""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, version
from random import Random

from weir.fleet.v1.instance_pb2 import Instance, InstanceKind
from weir_chassis.background import first_of
from weir_chassis.clock import Clock
from weir_chassis.health import Health

_KINDS = {name.removeprefix("INSTANCE_KIND_").lower(): value for name, value in InstanceKind.items()}


class Identity:
    """Made of three: what the process is from its start, what its service has described, and its health."""

    def __init__(self, service: str, health: Health, clock: Clock, random: Random) -> None:
        self._health = health
        self._described = Instance()
        self._own = Instance(
            instance_id=f"{random.getrandbits(128):032x}",
            # Microseconds since 1970: the next incarnation at an address starts later than this one.
            epoch=int(clock.time() * 1e6),
            kind=_KINDS.get(service, InstanceKind.INSTANCE_KIND_UNSPECIFIED),
            version=_version(),
        )
        self._changed = asyncio.Event()

    def describe(self, instance: Instance) -> None:
        """What the service says of itself, in place of what it said before: model versions, capabilities, capacity,
        price and weight. The other fields are not its own to say.
        """
        self._described = instance
        self._announce()

    def place(self, *, address: str | None = None, region: str | None = None, lease_seconds: float = 0.0) -> None:
        """Where it is, as far as that is known now, and for how long an announcement of it holds."""
        if address is not None:
            self._own.address = address
        if region is not None:
            self._own.region = region
        if lease_seconds:
            self._own.lease.FromNanoseconds(round(lease_seconds * 1e9))
        self._announce()

    def instance(self) -> Instance:
        """As of now."""
        message = Instance()
        message.CopyFrom(self._described)
        message.MergeFrom(self._own)
        message.draining = self._health.stopped.is_set()
        return message

    async def differs_from(self, said: Instance) -> None:
        """Returns when `instance` says something else."""
        while self.instance() == said:
            stopped = () if said.draining else (self._health.stopped.wait(),)
            await first_of(self._changed.wait(), *stopped)

    def _announce(self) -> None:
        # Each change retires the event that others wait on, so that none is missed and none has to be cleared.
        self._changed.set()
        self._changed = asyncio.Event()


def _version() -> str:
    try:
        return version("weir")
    except PackageNotFoundError:  # run from a folder that nobody has installed
        return ""
