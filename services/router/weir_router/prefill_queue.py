"""A prompt waits in a queue for whichever prefill worker has room first. The queue assigns; it carries no tokens.

    assign ── job ──▶ JetStream ──▶ a worker with room
      ▲                                │ its offer, a request
      └── answered: taken, not wanted any more, or not from you ◀──┘

Without NATS, when it is down, or when nobody offers in time, there is no assignment, and the policy chooses by what it
knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.prefill_queue import stream_name, subject
from weir_chassis.broker import Message, Session, SessionLost
from weir_chassis.nats import NatsConnection
from weir_router.fleet.model_version import Version
from weir_router.metrics import RouterMetrics

if TYPE_CHECKING:
    from nats.js import JetStreamContext

# JetStream answers a publication in about a millisecond; one that does not is down.
_PUBLISH_SECONDS = 0.5


@dataclass(slots=True)
class _Place:
    """Where this router publishes, and is answered, while a session lasts."""

    jetstream: JetStreamContext
    offer_subject: str


@dataclass(slots=True)
class _Waiting:
    workers: Set[str]
    offer: asyncio.Future[str]


class PrefillQueue:
    """Used from one event loop. As many jobs wait as there are requests between admission and their prefill."""

    def __init__(self, connection: NatsConnection, wait_seconds: float, metrics: RouterMetrics, nonce: int) -> None:
        """`nonce` tells this router's jobs from all others'."""
        self._connection, self._wait_seconds, self._metrics = connection, wait_seconds, metrics
        self._job_ids = (f"{nonce:016x}-{number}" for number in count(1))
        self._place: _Place | None = None
        self._waiting: dict[str, _Waiting] = {}
        # An answer for each offer that has come: a worker makes one at a time.
        self._answers: asyncio.Queue[tuple[str, pb.PrefillAnswer]] = asyncio.Queue()

    async def run(self) -> None:
        """Answers offers, for ever."""
        await self._connection.run_in_sessions(self._serve)

    async def assign(self, version: Version, prompt_tokens: int, workers: Set[str]) -> str | None:
        """The address of the first of these workers that has room; None: none has said so in time."""
        if self._place is None:
            return self._noted("unavailable", None)
        job_id = next(self._job_ids)
        waiting = self._waiting[job_id] = _Waiting(workers, asyncio.get_running_loop().create_future())
        try:
            await self._publish(self._place, version, pb.PrefillJob(job_id=job_id, prompt_tokens=prompt_tokens))
            async with asyncio.timeout(self._wait_seconds):
                return self._noted("assigned", await waiting.offer)
        except TimeoutError:
            return self._noted("late", None)
        except SessionLost:
            return self._noted("unavailable", None)
        finally:
            # Whoever offers from now on hears that nobody waits, and drops the job.
            self._waiting.pop(job_id, None)

    def _noted(self, outcome: str, address: str | None) -> str | None:
        self._metrics.prefill_jobs.labels(outcome).inc()
        return address

    async def _publish(self, place: _Place, version: Version, job: pb.PrefillJob) -> None:
        """Raises SessionLost, for a queue that does not exist too: no worker is there to make it."""
        from nats.errors import Error  # noqa: PLC0415

        message, job.offer_subject = version.message(), place.offer_subject
        try:
            await place.jetstream.publish(
                subject(message),
                job.SerializeToString(),
                timeout=_PUBLISH_SECONDS,
                stream=stream_name(message),
                headers={"Nats-Msg-Id": job.job_id},
            )
        except (Error, OSError, TimeoutError) as error:
            raise SessionLost(str(error) or type(error).__name__) from error

    async def _serve(self, session: Session) -> None:
        assert self._connection.session is session, "the work of a session runs while it lasts"
        offer_subject = session.new_inbox()
        await session.subscribe(offer_subject, self._hear)
        self._place = _Place(self._connection.session.client.jetstream(), offer_subject)
        try:
            while True:
                reply, answer = await self._answers.get()
                await session.publish(reply, answer.SerializeToString())
        finally:
            self._place = None
            for waiting in self._waiting.values():
                if not waiting.offer.done():
                    waiting.offer.set_exception(SessionLost("the connection to NATS was lost"))

    def _hear(self, message: Message) -> None:
        try:
            offer = pb.PrefillOffer.FromString(message.payload)
        except DecodeError:
            return
        self._answers.put_nowait((message.reply, pb.PrefillAnswer(verdict=self._verdict(offer))))

    def _verdict(self, offer: pb.PrefillOffer) -> pb.OfferVerdict.ValueType:
        waiting = self._waiting.get(offer.job_id)
        if waiting is None or waiting.offer.done():
            return pb.OFFER_VERDICT_NOT_WANTED
        if offer.address not in waiting.workers:
            return pb.OFFER_VERDICT_NOT_YOU
        waiting.offer.set_result(offer.address)
        return pb.OFFER_VERDICT_TAKEN
