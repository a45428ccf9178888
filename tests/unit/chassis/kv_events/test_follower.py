"""A follower before a bus that does what it likes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from contract.kv_bus_contract import Known
from fakes.broker import FakeBroker, FakeBus, Faults
from unit.chassis.kv_events.making import everything, name, some_event, stored
from weir.inference.v1.kv_event_pb2 import KvEventBatch
from weir_chassis.broker import Message
from weir_chassis.kv_events import blocks, wire
from weir_chassis.kv_events import follower as module
from weir_chassis.kv_events.blocks import HeldBlocks, KvEventLog, new_log
from weir_chassis.kv_events.follower import KvEventFollower
from weir_chassis.kv_events.publisher import KvEventPublisher
from weir_chassis.kv_events.wire import Source
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock, settle

SOURCE = Source("executor", "one")


@dataclass
class World:
    bus: FakeBus
    clock: VirtualClock
    known: Known
    follower: KvEventFollower
    broker: FakeBroker
    registry: CollectorRegistry
    tasks: list[asyncio.Task[None]]

    def publish(self, source: Source, log: KvEventLog) -> asyncio.Task[None]:
        one = KvEventPublisher(self.bus.connect(), source, log, Metrics("source"), self.clock)
        self.tasks.append(asyncio.create_task(one.run()))
        return self.tasks[-1]

    def say(self, *batches: KvEventBatch, subject: str = wire.events_subject(SOURCE)) -> None:
        for batch in batches:
            self.bus.publish(Message(subject, batch.SerializeToString()))

    def count(self, name: str) -> float | None:
        return self.registry.get_sample_value(f"weir_test_{name}")


@asynccontextmanager
async def world(seed: int = 0) -> AsyncIterator[World]:
    bus, clock, known, registry = FakeBus(seed), VirtualClock(), Known(), CollectorRegistry()
    broker = bus.connect()
    follower = KvEventFollower(
        broker, ["executor"], known, metrics=Metrics("test", registry), clock=clock, random=Random(seed)
    )
    one = World(bus, clock, known, follower, broker, registry, [asyncio.create_task(follower.run())])
    await settle()
    yield one
    for task in one.tasks:
        assert not task.done() or task.cancelled(), task
        task.cancel()
    await asyncio.gather(*one.tasks, return_exceptions=True)


def agrees(known: Known, source: Source, log: KvEventLog) -> bool:
    assert isinstance(log._held, HeldBlocks)
    return source in known.held and everything(known.held[source]) == everything(log._held)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
async def test_after_any_history_it_knows_what_every_source_holds(seed: int) -> None:
    random = Random(seed)
    async with world(seed) as one:
        sources = {Source("executor", name): new_log(2 * i + 1, 30) for i, name in enumerate(["a", "b"])}
        running = {source: one.publish(source, log) for source, log in sources.items()}
        one.bus.faults = Faults(lost=0.2, twice=0.2, late=0.3)
        for _ in range(40):
            source = random.choice(list(sources))
            sources[source].append([some_event(random) for _ in range(random.randrange(6))])
            await one.clock.advance(random.choice([0.0, 0.02, 0.5]))
            chance = random.random()
            if chance < 0.05:  # the source is another process from now on
                running[source].cancel()
                sources[source] = new_log(random.getrandbits(32) | 1, 30)
                running[source] = one.publish(source, sources[source])
            elif chance < 0.15:
                random.choice(one.bus.brokers).lose()
            elif chance < 0.4:
                for broker in one.bus.brokers:
                    broker.restore()
        one.bus.faults = Faults()
        for broker in one.bus.brokers:
            broker.restore()
        await one.clock.advance(15.0)
        for source, log in sources.items():
            assert agrees(one.known, source, log)


async def test_a_source_is_asked_at_once_when_it_is_first_heard() -> None:
    async with world() as one:
        log = new_log(1, 100)
        log.append([stored(1, 3)])
        one.publish(SOURCE, log)
        await one.clock.advance(0.3)
        assert agrees(one.known, SOURCE, log)
        assert (one.count("kv_sources"), one.count("kv_source_resets_total")) == (1, 1)


async def test_a_question_without_an_answer_is_asked_again_and_ever_later() -> None:
    async with world() as one:
        asked: list[float] = []
        listener = one.bus.connect().session
        assert listener is not None
        await listener.subscribe(wire.snapshot_subject(SOURCE), lambda _: asked.append(one.clock.monotonic()))
        for _ in range(120):
            one.say(wire.heartbeat(SOURCE, 1, 5))
            await one.clock.advance(0.5)
        pauses = [after - before for before, after in pairwise(asked)]
        assert 5 <= len(asked) <= 20
        assert pauses[0] < 3
        assert max(pauses) <= 13
        assert pauses[-1] > 6


async def test_a_piece_that_is_missing_voids_the_answer() -> None:
    async with world() as one:
        log = new_log(1, 1_000_000)
        log.append([stored(i) for i in range(9000)])
        one.publish(SOURCE, log)
        await one.clock.advance(0.5)
        assert agrees(one.known, SOURCE, log)
        one.known.held.clear()
        one.follower._sources.clear()
        one.bus.faults = Faults(lost=0.5)
        for _ in range(100):
            await one.clock.advance(1.0)
            for source, held in one.known.held.items():
                assert len(held) == 9000, source
        one.bus.faults = Faults()
        await one.clock.advance(15.0)
        assert agrees(one.known, SOURCE, log)


async def test_a_silent_source_is_forgotten_also_while_there_is_no_bus() -> None:
    async with world() as one:
        log = new_log(1, 100)
        log.append([stored(1)])
        one.publish(SOURCE, log)
        await one.clock.advance(1)
        assert list(one.follower.ages()) == [SOURCE]
        one.broker.lose()
        await one.clock.advance(module.SILENCE_SECONDS - 2)
        assert SOURCE in one.known.held
        await one.clock.advance(4)
        assert (one.known.held, one.follower.ages(), one.count("kv_sources")) == ({}, {}, 0)
        one.broker.restore()
        await one.clock.advance(3)
        assert agrees(one.known, SOURCE, log)


async def test_strangers_and_nonsense_are_counted_and_do_no_harm() -> None:
    async with world() as one:
        log = new_log(1, 100)
        one.publish(SOURCE, log)
        await one.clock.advance(1)
        one.bus.publish(Message(wire.events_subject(SOURCE), b"\xff\xff\xff"))
        await one.clock.advance(1)
        assert one.count("kv_event_batches_dropped_total") == 1
        one.bus.publish(Message(f"{one.follower._inbox}.77", wire.heartbeat(SOURCE, 9, 9).SerializeToString()))
        one.bus.publish(Message(f"{one.follower._inbox}.x", wire.heartbeat(SOURCE, 9, 9).SerializeToString()))
        await one.clock.advance(1)
        assert agrees(one.known, SOURCE, log)


async def test_what_waits_to_be_worked_off_is_bounded() -> None:
    async with world() as one:
        events = blocks.stored([name(i) for i in range(60_000)], b"", tier="device")
        big = KvEventBatch(service="executor", source="one", epoch=1, sequence=30, events=events)
        for _ in range(100):
            one.say(big)
        await one.clock.advance(0)
        await settle(200)
        assert one.follower._waiting_bytes == 0
        assert (one.count("kv_event_batches_dropped_total") or 0) >= 100 - (64 * 1024 * 1024) // (60_000 * 16)


async def test_sources_beyond_the_bound_are_not_followed() -> None:
    async with world() as one:
        for number in range(module._MAX_SOURCES + 5):
            source = Source("executor", str(number))
            one.say(wire.heartbeat(source, 1, 0), subject=wire.events_subject(source))
        await settle(3 * module._MAX_SOURCES)
        assert len(one.follower.ages()) == module._MAX_SOURCES
        assert one.count("kv_event_batches_dropped_total") == 5
