"""The store on the message bus: it tells what it holds, and hears what executors do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from weir_chassis.kv_events.blocks import KvEventLog
from weir_chassis.kv_events.follower import KvEventFollower
from weir_chassis.kv_events.publisher import KvEventPublisher
from weir_chassis.kv_events.wire import Source
from weir_chassis.nats import connect_nats, source_name
from weir_chassis.server import Chassis
from weir_kvstore.inventory import Inventory, SourceReport
from weir_kvstore.settings import KvStoreSettings

_FOLLOWED: Final = ["executor"]


def join_bus(
    settings: KvStoreSettings, chassis: Chassis, kv_events: KvEventLog
) -> Callable[[], Sequence[SourceReport]]:
    """In the background from now on. Returns what tells of the executors: nothing where no NATS is configured."""
    gauge = chassis.metrics.gauge("executor_blocks", "Blocks in executors' own pools, as far as their events tell")
    connection = connect_nats(settings, chassis)
    if connection is None:
        return tuple
    source = Source(chassis.service, source_name(settings, chassis.random))
    publisher = KvEventPublisher(connection, source, kv_events, chassis.metrics, chassis.clock)
    inventory = Inventory(gauge.set)
    follower = KvEventFollower(
        connection, _FOLLOWED, inventory, metrics=chassis.metrics, clock=chassis.clock, random=chassis.random
    )
    chassis.background.start(publisher.run(), name="publish_kv_events")
    chassis.background.start(follower.run(), name="follow_executors")
    return lambda: inventory.reports(follower.ages())
