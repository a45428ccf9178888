"""The objects of a store, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from weir.kvstore.v1 import kvstore_pb2
from weir.kvstore.v1.block_chunk_grpc import add_servicer_to_server
from weir_chassis.clock import Clock
from weir_chassis.event_log import new_epoch
from weir_chassis.followed_file import FollowedFile, reread_on_hangup
from weir_chassis.kv_events.blocks import new_log
from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers
from weir_kvstore.arena_put import ArenaPuts
from weir_kvstore.assembly import Assembly, make_arena
from weir_kvstore.bus import join_bus
from weir_kvstore.events import TierEvents
from weir_kvstore.hop import Arrivals
from weir_kvstore.metrics import StoreCollector
from weir_kvstore.put import Puts
from weir_kvstore.replay.recorder import TraceRecorder
from weir_kvstore.servicer import KvStoreServicer
from weir_kvstore.settings import KvStoreSettings
from weir_kvstore.store import BlockStore
from weir_kvstore.tiers_config import parse

_NAME: Final = kvstore_pb2.DESCRIPTOR.services_by_name["KvStoreService"].full_name


@asynccontextmanager
async def build(settings: KvStoreSettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    """The store with its tiers, and what earlier processes left in them. Reaches other hosts only by shared tiers."""

    def new_id() -> str:
        return f"{chassis.random.getrandbits(128):032x}"

    config = settings.tiers()
    arena = make_arena(config, settings, new_id())
    arrivals = Arrivals()
    assembly = Assembly(config, settings, chassis, arena, arrivals, new_id=new_id)
    store = assembly.store
    puts = Puts(store, max_open=settings.max_open_puts, idle_seconds=settings.put_idle_seconds)
    kv_events = new_log(new_epoch(chassis.random), settings.kv_event_log)
    store.watch(TierEvents(kv_events))
    await store.open()
    recorder = _recorder(settings, chassis)
    servicer = KvStoreServicer(
        store,
        puts,
        kv_events,
        arrivals,
        arena_puts=ArenaPuts(store, puts, new_id=new_id),
        in_force=assembly.in_force,
        sources=join_bus(settings, chassis, kv_events),
        default_lease_seconds=settings.default_lease_seconds,
        record=None if recorder is None else recorder.record,
    )
    collector = StoreCollector(store)
    chassis.metrics.registry.register(collector)
    chassis.background.start(arena.touch_ahead(), name="touch_arena")
    chassis.background.start(store.mover.run(), name="move_blocks")
    chassis.background.start(_sweep(store, chassis.clock, settings.sweep_seconds), name="sweep_store")
    chassis.background.start(_reopen(store, chassis.clock, settings.sweep_seconds), name="reopen_tiers")
    try:
        with _followed(settings, assembly, chassis):
            registration = Registration(add_servicer_to_server, servicer, _NAME)
            yield Servicers([registration], drain=servicer.drain)
    finally:
        chassis.metrics.registry.unregister(collector)
        await store.close()
        if recorder is not None:
            await recorder.flush()


def _recorder(settings: KvStoreSettings, chassis: Chassis) -> TraceRecorder | None:
    if settings.trace_file is None:
        return None
    recorder = TraceRecorder(settings.trace_file, settings.trace_max_bytes, chassis.clock)
    chassis.background.start(recorder.run(), name="record_trace")
    return recorder


@contextmanager
def _followed(settings: KvStoreSettings, assembly: Assembly, chassis: Chassis) -> Iterator[None]:
    """The file of tiers, where there is one, holds as it changes."""
    if settings.tiers_file is None:
        yield
        return
    file = FollowedFile(settings.tiers_file, parse, assembly.config, assembly.apply)
    assembly.file = file
    chassis.background.start(file.follow(chassis.clock, poll_seconds=settings.tiers_poll_seconds), name="follow_tiers")
    with reread_on_hangup(file):
        yield


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
