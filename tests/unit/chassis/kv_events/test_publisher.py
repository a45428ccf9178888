"""What a source says on the bus, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fakes.broker import FakeBroker, FakeBus
from unit.chassis.kv_events.making import stored
from weir.inference.v1.kv_event_pb2 import KvEventBatch, KvEventRequest
from weir_chassis.broker import Message
from weir_chassis.errors import Draining
from weir_chassis.kv_events import wire
from weir_chassis.kv_events.blocks import KvEventLog, new_log
from weir_chassis.kv_events.publisher import HEARTBEAT_SECONDS, KvEventPublisher
from weir_chassis.kv_events.wire import Source
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock, settle

SOURCE = Source("kvstore", "one")


@asynccontextmanager
async def published(log: KvEventLog, bus: FakeBus) -> AsyncIterator[tuple[VirtualClock, FakeBroker]]:
    clock, broker = VirtualClock(), bus.connect()
    running = asyncio.create_task(KvEventPublisher(broker, SOURCE, log, Metrics("test"), clock).run())
    await settle()
    yield clock, broker
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def said(bus: FakeBus) -> list[tuple[int, int]]:
    """Sequence and number of events of every batch, in order; whatever was said before is forgotten."""
    batches = [KvEventBatch.FromString(message.payload) for message in bus.published]
    assert {message.subject for message in bus.published} <= {wire.events_subject(SOURCE)}
    bus.published.clear()
    return [(batch.sequence, len(batch.events)) for batch in batches]


async def test_it_begins_with_where_it_stands_and_goes_on_with_a_sign_of_life() -> None:
    log, bus = new_log(1, 100), FakeBus()
    log.append([stored(1), stored(2)])
    async with published(log, bus) as (clock, _):
        assert said(bus) == [(2, 0)], "what is held is asked for by those who want it"
        await clock.advance(2 * HEARTBEAT_SECONDS + 0.1)
        assert said(bus) == [(2, 0), (2, 0)]


async def test_events_that_come_close_together_travel_together() -> None:
    log, bus = new_log(1, 100), FakeBus()
    async with published(log, bus) as (clock, _):
        said(bus)
        log.append([stored(1)])
        await settle()
        log.append([stored(2), stored(3)])
        await clock.advance(0.1)
        assert said(bus) == [(3, 3)]
        await clock.advance(HEARTBEAT_SECONDS + 0.1)
        assert said(bus) == [(3, 0)]


async def test_one_that_falls_behind_the_log_says_where_it_stands() -> None:
    log, bus = new_log(1, 4), FakeBus()
    async with published(log, bus) as (clock, broker):
        broker.lose()
        said(bus)
        log.append([stored(i) for i in range(20)])
        await clock.advance(10)
        assert said(bus) == []
        broker.restore()
        await settle()
        assert said(bus) == [(20, 0)]
        log.append([stored(i) for i in range(20, 40)])
        await clock.advance(0.1)
        assert said(bus) == [(40, 0)], "the log remembers four of the twenty"


async def ask(bus: FakeBus, request: bytes) -> list[KvEventBatch]:
    session = bus.connect().session
    assert session is not None
    pieces: list[KvEventBatch] = []
    inbox = session.new_inbox()
    await session.subscribe(inbox, lambda message: pieces.append(KvEventBatch.FromString(message.payload)))
    await session.publish(wire.snapshot_subject(SOURCE), request, inbox)
    await settle()
    return pieces


async def test_it_answers_from_where_it_is_asked_or_with_all() -> None:
    log, bus = new_log(5, 100), FakeBus()
    log.append([stored(1), stored(2), stored(3)])
    async with published(log, bus):
        (rest,) = await ask(bus, KvEventRequest(epoch=5, from_sequence=3).SerializeToString())
        assert (rest.sequence, list(rest.events), rest.last_piece) == (3, [stored(3)], True)
        for request in (KvEventRequest(), KvEventRequest(epoch=4, from_sequence=3), KvEventRequest(epoch=5)):
            (everything,) = await ask(bus, request.SerializeToString())
            assert wire.is_reset(everything)
            assert len(everything.events) == 4
        (everything,) = await ask(bus, b"\xff\xff")
        assert wire.is_reset(everything)


async def test_too_many_questions_are_dropped_and_the_source_lives_on() -> None:
    log, bus = new_log(5, 100), FakeBus()
    async with published(log, bus) as (clock, _):
        for _ in range(3):
            session = bus.connect().session
            assert session is not None
            for _ in range(400):
                bus.publish(question())
            await settle(2000)
        answers = [message for message in bus.published if message.subject == "nobody"]
        assert 256 <= len(answers) < 1200
        log.append([stored(1)])
        await clock.advance(0.1)
        assert KvEventBatch.FromString(bus.published[-1].payload).sequence == 1


def question() -> Message:
    return Message(wire.snapshot_subject(SOURCE), b"", "nobody")


async def test_a_bus_for_small_messages_only_is_not_used() -> None:
    log, bus = new_log(1, 100), FakeBus(max_payload=1024)
    async with published(log, bus) as (clock, _):
        log.append([stored(1)])
        await clock.advance(10)
        assert bus.published == []


async def test_it_ends_with_its_log() -> None:
    log, bus = new_log(1, 100), FakeBus()
    running = asyncio.create_task(KvEventPublisher(bus.connect(), SOURCE, log, Metrics("test"), VirtualClock()).run())
    await settle()
    log.close(Draining("over"))
    await asyncio.wait_for(running, 1)
