"""A source's log → the broker: what happens, as it happens; a heartbeat when nothing does; and what followers ask for.

The publisher is one more position in the log. While the connection is slow the log goes on, and the next batch brings
more; where it has fallen behind what the log remembers, or begins a session, it tells only the number of the newest
event: whoever follows from an earlier one notices, and asks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from google.protobuf.message import DecodeError

from weir.inference.v1.kv_event_pb2 import KvEventBatch, KvEventRequest
from weir_chassis.background import first_of
from weir_chassis.broker import Broker, Message, Session
from weir_chassis.clock import Clock
from weir_chassis.kv_events import wire
from weir_chassis.kv_events.blocks import KvEventLog
from weir_chassis.kv_events.wire import Source
from weir_chassis.metrics import Metrics
from weir_chassis.telemetry import get_logger

# How soon a follower that lost the last batch of a burst knows; three may be lost before a source is.
HEARTBEAT_SECONDS: Final = 2.0
# An engine step, or some dozens of puts: events that come so close together travel together.
_LINGER_SECONDS: Final = 0.01
# Questions that wait. A follower whose question is dropped asks again.
_MAX_QUESTIONS: Final = 256


class KvEventPublisher:
    """Publishes one log under the name of its source."""

    def __init__(self, broker: Broker, source: Source, log: KvEventLog, metrics: Metrics, clock: Clock) -> None:
        self._broker, self._source, self._log, self._clock = broker, source, log, clock
        self._published = metrics.counter("kv_events_published", "KV events published")
        self._answered = metrics.counter("kv_event_answers", "Answers to followers that had missed events")
        self._questions: deque[Message] = deque()
        self._asked = asyncio.Event()

    async def run(self) -> None:
        """Until the log is closed."""
        try:
            await self._broker.run_in_sessions(self._serve)
        except Exception as error:
            if error is not self._log.closed:
                raise

    async def _serve(self, session: Session) -> None:
        if session.max_payload < wire.MIN_MESSAGE_BYTES:
            get_logger().error("kv_events_not_published", max_payload=session.max_payload, least=wire.MIN_MESSAGE_BYTES)
            return
        self._questions.clear()
        await session.subscribe(wire.snapshot_subject(self._source), self._hear)
        position = await self._beat(session)
        heartbeat_at = self._clock.monotonic() + HEARTBEAT_SECONDS
        while True:
            await self._until_something(position, heartbeat_at)
            while self._questions:
                await self._answer(session, self._questions.popleft())
            if self._log.sequence >= position:
                await self._clock.sleep(_LINGER_SECONDS)
                position = await self._tell(session, position)
            elif self._clock.monotonic() < heartbeat_at:
                continue
            else:
                await self._beat(session)
            heartbeat_at = self._clock.monotonic() + HEARTBEAT_SECONDS

    def _hear(self, question: Message) -> None:
        if question.reply and len(self._questions) < _MAX_QUESTIONS:
            self._questions.append(question)
            self._asked.set()

    async def _until_something(self, position: int, heartbeat_at: float) -> None:
        """An event of this number, a question, or the time for a heartbeat."""
        await first_of(
            self._log.happened(position),
            self._asked.wait(),
            self._clock.sleep(heartbeat_at - self._clock.monotonic()),
        )
        self._asked.clear()

    async def _tell(self, session: Session, position: int) -> int:
        """What happened from this number on; the number of the next event."""
        sequence, events = self._log.sequence, self._log.remembered(position)
        if events is None:
            return await self._beat(session)
        for batch in wire.batches(self._source, self._log.epoch, sequence, events, session.max_payload):
            await session.publish(wire.events_subject(self._source), batch.SerializeToString())
        self._published.inc(len(events))
        return sequence + 1

    async def _beat(self, session: Session) -> int:
        sequence = self._log.sequence
        beat = wire.heartbeat(self._source, self._log.epoch, sequence)
        await session.publish(wire.events_subject(self._source), beat.SerializeToString())
        return sequence + 1

    async def _answer(self, session: Session, question: Message) -> None:
        for piece in await self._pieces(question.payload, session.max_payload):
            await session.publish(question.reply, piece.SerializeToString())
        self._answered.inc()

    async def _pieces(self, question: bytes, max_bytes: int) -> list[KvEventBatch]:
        try:
            asked = KvEventRequest.FromString(question)
        except DecodeError:
            asked = KvEventRequest()
        known = asked.HasField("epoch") and asked.HasField("from_sequence")
        batch = await self._log.read(asked.epoch if known else None, asked.from_sequence if known else None)
        return list(wire.answer(self._source, self._log.epoch, batch, max_bytes))
