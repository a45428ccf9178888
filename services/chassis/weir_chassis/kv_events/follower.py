"""The broker → whoever wants to know what every source of some services holds.

Each source is followed by itself: its batches are taken in order, and what is missing is asked for. What a consumer is
told about a source is never a history with a hole in it: it goes on, or is void.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Final, Protocol

from weir.inference.v1.kv_event_pb2 import KvEvent, KvEventBatch, KvEventRequest
from weir_chassis.background import first_of
from weir_chassis.broker import Broker, Message, Session
from weir_chassis.clock import Clock
from weir_chassis.kv_events import wire
from weir_chassis.kv_events.progress import Progress, Step
from weir_chassis.kv_events.publisher import HEARTBEAT_SECONDS
from weir_chassis.kv_events.wire import Source
from weir_chassis.metrics import Metrics
from weir_chassis.telemetry import get_logger

# Three heartbeats, and some time on the way. What a source said before that is of no use to anybody.
SILENCE_SECONDS: Final = 4 * HEARTBEAT_SECONDS
# More than any fleet that one follower looks at; strangers may publish too.
_MAX_SOURCES: Final = 4096
# What has come and not been worked off: a snapshot of four million blocks. Of what is dropped, the numbers tell.
_MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
# From the last piece of an answer to the next. Then it is asked for again, twice as late each time.
_ANSWER_SECONDS: Final = 2.0
_MAX_PAUSE_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 0.25


class Consumer(Protocol):
    """Is told in order, source by source, on one event loop. Quick: it may be told of thousands of blocks at once."""

    def reset(self, source: Source) -> None:
        """All that was told of it is void; what follows is all that it holds."""
        ...

    def apply(self, source: Source, events: Sequence[KvEvent]) -> None: ...

    def lost(self, source: Source) -> None:
        """It has been silent for too long: nothing is known of it any more."""
        ...


@dataclass(slots=True)
class _Question:
    number: int
    patience_until: float
    pieces: list[KvEventBatch] = field(default_factory=list)
    size_bytes: int = 0


@dataclass(slots=True)
class _Followed:
    heard_at: float
    progress: Progress = field(default_factory=Progress)
    question: _Question | None = None
    ask_at: float = 0.0
    pause: float = _TICK_SECONDS  # before it is asked again; twice as long after each failure


class KvEventFollower:
    """Follows every source of these services, as long as `run` runs."""

    def __init__(
        self,
        broker: Broker,
        services: Sequence[str],
        consumer: Consumer,
        *,
        metrics: Metrics,
        clock: Clock,
        random: Random,
    ) -> None:
        self._broker, self._services, self._consumer = broker, services, consumer
        self._clock, self._random = clock, random
        self._sources: dict[Source, _Followed] = {}
        self._asking: dict[int, Source] = {}
        self._numbers = count(1)
        self._waiting: deque[Message] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._inbox = ""
        self._followed = metrics.gauge("kv_sources", "Sources whose KV events are followed")
        self._resets = metrics.counter("kv_source_resets", "What was known of a source was void, and told anew")
        self._questions = metrics.counter("kv_source_questions", "Questions to sources of which something was missed")
        self._dropped = metrics.counter("kv_event_batches_dropped", "Batches that were malformed or too many")

    def ages(self) -> dict[Source, float]:
        """Seconds since each source was heard."""
        now = self._clock.monotonic()
        return {source: now - followed.heard_at for source, followed in self._sources.items()}

    async def run(self) -> None:
        """For ever."""
        await first_of(self._broker.run_in_sessions(self._follow), self._forget_the_silent())

    async def _follow(self, session: Session) -> None:
        self._inbox = session.new_inbox()
        for service in self._services:
            await session.subscribe(wire.events_of_all(service), self._hear)
        await session.subscribe(f"{self._inbox}.*", self._hear)
        for followed in self._sources.values():  # an answer that was under way is lost with its session
            self._give_up(followed, retry_after=0.0)
        while True:
            await self._work_off()
            for source in list(self._due()):
                await self._ask(session, source)
            await first_of(self._arrived.wait(), self._clock.sleep(_TICK_SECONDS))
            self._arrived.clear()

    async def _forget_the_silent(self) -> None:
        while True:
            await self._clock.sleep(_TICK_SECONDS)
            for source, age in self.ages().items():
                if age > SILENCE_SECONDS:
                    self._forget(source)

    def _hear(self, message: Message) -> None:
        if self._waiting_bytes + len(message.payload) > _MAX_WAITING_BYTES:
            self._dropped.inc()
            return
        self._waiting.append(message)
        self._waiting_bytes += len(message.payload)
        self._arrived.set()

    async def _work_off(self) -> None:
        """All that has come, letting others in between."""
        while self._waiting:
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message.payload)
            batch = wire.parse(message.payload)
            if batch is None:
                self._dropped.inc(bool(message.payload))  # nobody listens: the bus answers with an empty message
            elif message.subject.startswith(f"{self._inbox}."):
                await self._take_piece(message.subject, batch)
            else:
                self._take(batch)
            await asyncio.sleep(0)

    def _take(self, batch: KvEventBatch) -> None:
        source = wire.source_of(batch)
        followed = self._sources.get(source)
        if followed is None:
            if len(self._sources) >= _MAX_SOURCES:
                self._dropped.inc()
                return
            followed = self._sources[source] = _Followed(self._clock.monotonic())
            self._followed.set(len(self._sources))
        followed.heard_at = self._clock.monotonic()
        for step in followed.progress.hear(batch):
            self._hand_on(source, step)

    async def _take_piece(self, subject: str, piece: KvEventBatch) -> None:
        number = subject.rpartition(".")[2]
        source = self._asking.get(int(number)) if number.isdecimal() else None
        followed = self._sources.get(source) if source is not None else None
        if source is None or followed is None or followed.question is None or wire.source_of(piece) != source:
            return  # to a question that was given up
        question, now = followed.question, self._clock.monotonic()
        question.size_bytes += piece.ByteSize()
        in_order = piece.piece == len(question.pieces) and piece.epoch == (question.pieces or [piece])[0].epoch
        if not in_order or question.size_bytes > _MAX_WAITING_BYTES:
            self._give_up(followed, retry_after=self._pause(followed))
            return
        followed.heard_at = now
        question.pieces.append(piece)
        question.patience_until = now + _ANSWER_SECONDS
        if piece.last_piece:
            self._give_up(followed, retry_after=0.0)
            followed.pause = _TICK_SECONDS
            for step in followed.progress.take_answer(question.pieces):
                self._hand_on(source, step)
                await asyncio.sleep(0)

    def _due(self) -> Iterator[Source]:
        """Those to ask now."""
        now = self._clock.monotonic()
        for source, followed in self._sources.items():
            question = followed.question
            if question is not None and question.patience_until <= now:
                self._give_up(followed, retry_after=self._pause(followed))
            if followed.progress.must_ask and followed.question is None and followed.ask_at <= now:
                yield source

    async def _ask(self, session: Session, source: Source) -> None:
        followed, number = self._sources.get(source), next(self._numbers)
        if followed is None:
            return
        followed.question = _Question(number, self._clock.monotonic() + _ANSWER_SECONDS)
        self._asking[number] = source
        self._questions.inc()
        progress = followed.progress
        asked = KvEventRequest(epoch=progress.epoch, from_sequence=progress.sequence + 1)
        await session.publish(wire.snapshot_subject(source), asked.SerializeToString(), f"{self._inbox}.{number}")

    def _give_up(self, followed: _Followed, *, retry_after: float) -> None:
        """Ends the question, if there is one."""
        if followed.question is not None:
            del self._asking[followed.question.number]
            followed.question = None
        followed.ask_at = self._clock.monotonic() + retry_after

    def _pause(self, followed: _Followed) -> float:
        followed.pause = min(2 * followed.pause, _MAX_PAUSE_SECONDS)
        return followed.pause * self._random.uniform(0.5, 1.0)

    def _hand_on(self, source: Source, step: Step) -> None:
        if step.reset:
            self._resets.inc()
            self._consumer.reset(source)
        if step.events:
            self._consumer.apply(source, step.events)

    def _forget(self, source: Source) -> None:
        get_logger().warning("kv_source_lost", service=source.service, source=source.name)
        self._give_up(self._sources.pop(source), retry_after=0.0)
        self._followed.set(len(self._sources))
        self._consumer.lost(source)
