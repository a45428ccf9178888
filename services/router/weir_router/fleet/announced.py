"""Who has announced itself, from what came over a bus that may lose, repeat and reorder. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from weir.fleet.v1.instance_pb2 import Instance
from weir_chassis.fleet.wire import lease_seconds
from weir_router.fleet.membership import Heard, Place, newest

# Instances that are remembered: more than a router connects to of all kinds, so that none of those is forgotten for
# one that is not wanted.
_MAX_HEARD: Final = 8192


class Announced:
    """Times are monotonic seconds."""

    def __init__(self, limit: int = _MAX_HEARD) -> None:
        self._limit = limit
        self._heard: dict[str, Heard] = {}  # by instance id
        # Ids of those that have left, until what they said before cannot be under way any more.
        self._left: dict[str, float] = {}

    def hear(self, instance: Instance, now: float) -> bool:
        """Whether anything is another now, besides how long it holds."""
        seconds, known = lease_seconds(instance), self._heard.get(instance.instance_id)
        if not seconds:
            self._heard.pop(instance.instance_id, None)
            if known is not None:
                self._left[instance.instance_id] = now + lease_seconds(known.instance)
            return known is not None
        if now < self._left.get(instance.instance_id, now) or (known is None and len(self._heard) >= self._limit):
            return False
        self._heard[instance.instance_id] = Heard.of(instance, now + seconds)
        return known is None or known.instance != instance

    def heard(self) -> Sequence[Heard]:
        return list(self._heard.values())

    def forget(self, answering: Collection[Place], now: float) -> None:
        """Those whose lease has lapsed and that do not answer either, and who left so long ago that it is past.

        Who answers at an address is its latest incarnation.
        """
        lapsed = [one for one in self._heard.values() if now >= one.expires_at]
        latest = newest(self._heard.values()) if lapsed else {}
        for one in lapsed:
            if one.place is None or one.place not in answering or latest[one.place] is not one.instance:
                del self._heard[one.instance.instance_id]
        for instance_id in [instance_id for instance_id, until in self._left.items() if now >= until]:
            del self._left[instance_id]
