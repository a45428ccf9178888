"""The objects of a store, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from weir.kvstore.v1 import kvstore_pb2
from weir.kvstore.v1.block_chunk_grpc import add_servicer_to_server
from weir_chassis.clock import Clock
from weir_chassis.event_log import new_epoch
from weir_chassis.kv_events.blocks import new_log
from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers
from weir_kvstore.arena_put import ArenaPuts
from weir_kvstore.bus import join_bus
from weir_kvstore.events import TierEvents
from weir_kvstore.hop import Arrivals
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.metrics import StoreCollector
from weir_kvstore.put import Puts
from weir_kvstore.rules import Rules
from weir_kvstore.servicer import KvStoreServicer
from weir_kvstore.settings import KvStoreSettings
from weir_kvstore.store import BlockStore, Bounds
from weir_kvstore.tiers.arena import ArenaSlots
from weir_kvstore.tiers.memory import shared_memory

_NAME: Final = kvstore_pb2.DESCRIPTOR.services_by_name["KvStoreService"].full_name


@asynccontextmanager
async def build(settings: KvStoreSettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    """An empty store. It reaches no other service, and what it held is gone with it."""

    def new_id() -> str:
        return f"{chassis.random.getrandbits(128):032x}"

    slots = ArenaSlots(settings.capacity_bytes, partial(shared_memory, settings.arena_dir, new_id()))
    rules = Rules(settings.max_blocks, max_staged_bytes=settings.staged_bytes)
    ram = LocalTier("ram", slots, chassis.leases, chassis.random, rules)
    store = BlockStore(
        ram,
        Bounds(settings.max_live_leases),
        chassis.random,
        new_lease_id=new_id,
    )
    puts = Puts(store, max_open=settings.max_open_puts, idle_seconds=settings.put_idle_seconds)
    kv_events = new_log(new_epoch(chassis.random), settings.kv_event_log)
    store.watch(TierEvents(kv_events))
    await store.open()
    arrivals = Arrivals()
    servicer = KvStoreServicer(
        store,
        puts,
        kv_events,
        arrivals,
        arena_puts=ArenaPuts(store, puts, new_id=new_id),
        sources=join_bus(settings, chassis, kv_events),
        default_lease_seconds=settings.default_lease_seconds,
    )
    collector = StoreCollector(store)
    chassis.metrics.registry.register(collector)
    chassis.background.start(slots.touch_ahead(), name="touch_arena")
    chassis.background.start(_sweep(store, chassis.clock, settings.sweep_seconds), name="sweep_store")
    chassis.background.start(_reopen(store, chassis.clock, settings.sweep_seconds), name="reopen_tiers")
    try:
        registration = Registration(add_servicer_to_server, servicer, _NAME)
        yield Servicers([registration], drain=servicer.drain)
    finally:
        chassis.metrics.registry.unregister(collector)
        await store.close()


async def _sweep(store: BlockStore, clock: Clock, seconds: float) -> None:
    """For ever ends what has lapsed, so that it ends even when nobody calls."""
    while True:
        await clock.sleep(seconds)
        store.sweep()


async def _reopen(store: BlockStore, clock: Clock, seconds: float) -> None:
    """For ever tries to open what could not be opened."""
    while True:
        await clock.sleep(seconds)
        await store.reopen()


SERVICE: Final = ServiceDefinition("kvstore", KvStoreSettings, build, unbounded=frozenset({f"/{_NAME}/WatchKvEvents"}))
