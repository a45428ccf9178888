"""Prompts out of the queue, while there is room for them: how a prefill worker gets work that nobody chose it for.

    room ─▶ the next job ─▶ an offer to who waits ─▶ taken, or not wanted: done; not from this worker: back
                                                     └▶ the request comes by its router's stream, like any other

A worker that dies between taking a job and answering leaves it to the next: it is delivered again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.prefill_queue import CONSUMER, stream_name, subject
from weir.inference.v1.model_pb2 import ModelVersion
from weir_chassis.broker import Session
from weir_chassis.clock import Clock
from weir_chassis.nats import NatsConnection
from weir_chassis.telemetry import get_logger
from weir_executor.engine import EngineLoad
from weir_executor.metrics import ExecutorMetrics

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

# A job is of use for as long as its router waits, which is seconds; what is left of one that died goes by itself.
_MAX_AGE_SECONDS = 60.0
# Far more than routers let wait; beyond it they are told at once, and choose by themselves.
_MAX_JOBS = 65_536
# From a job's delivery to its worker's word on it, which takes milliseconds; then another worker gets it.
_ACK_SECONDS, _OFFER_SECONDS = 3.0, 1.0
_MAX_DELIVERIES = 5
# How long nobody notices that there is work again, which is a part of a step.
_LOOK_SECONDS = 0.005
# After that long a request that was promised has come, and the engine counts it.
_PROMISE_SECONDS = 0.05
# A job that is not for this worker, or that it has no room for after all, is for another.
_BACK_SECONDS = 0.02
_FETCH_SECONDS = 5.0
# Before the queue is looked for again, where there is no JetStream.
_RETRY_SECONDS = 1.0


class PrefillJobs:
    """One job at a time. Used from one event loop."""

    def __init__(
        self,
        connection: NatsConnection,
        version: ModelVersion,
        address: str,
        *,
        load: Callable[[], EngineLoad],
        is_open: Callable[[], bool],
        max_tokens: int,
        metrics: ExecutorMetrics,
        clock: Clock,
    ) -> None:
        """`address`: by which routers know this executor. `max_tokens`: to prefill; with so many it takes no job."""
        self._connection, self._version, self._address = connection, version, address
        self._load, self._is_open, self._max_tokens = load, is_open, max_tokens
        self._metrics, self._clock = metrics, clock
        self._promised: deque[tuple[float, int]] = deque()  # until when, and how many tokens
        self._fault = ""

    async def run(self) -> None:
        """For ever."""
        await self._connection.run_in_sessions(self._work)

    async def _work(self, session: Session) -> None:
        from nats.errors import Error  # noqa: PLC0415

        assert self._connection.session is session, "the work of a session runs while it lasts"
        client = self._connection.session.client
        while True:
            try:
                await self._take_jobs(client)
            except (Error, OSError, TimeoutError) as error:
                if self._connection.session is session:  # a connection that is lost says so itself
                    self._report(str(error) or type(error).__name__)
                await self._clock.sleep(_RETRY_SECONDS)

    def _report(self, fault: str) -> None:
        """Once for as long as it is the same."""
        if fault != self._fault:
            get_logger().warning("no_prefill_queue", reason=fault)
        self._fault = fault

    async def _take_jobs(self, client: Client) -> None:
        from nats.errors import TimeoutError as NothingCame  # noqa: PLC0415

        async with _queue(client.jetstream(), self._version) as jobs:
            self._fault = ""
            while True:
                await self._until_room()
                try:
                    (message,) = await jobs.fetch(1, timeout=_FETCH_SECONDS)
                except NothingCame:
                    continue
                outcome = await self._decide(client, message)
                self._metrics.prefill_jobs.labels(outcome).inc()

    async def _decide(self, client: Client, message: Msg) -> str:
        """What becomes of a job that was taken out."""
        try:
            job = pb.PrefillJob.FromString(message.data)
        except DecodeError:
            await message.term()
            return "malformed"
        if not self._has_room():
            await message.nak(delay=_BACK_SECONDS)
            return "no_room"
        match await self._offer(client, job):
            case pb.OFFER_VERDICT_TAKEN:
                self._promised.append((self._clock.monotonic() + _PROMISE_SECONDS, job.prompt_tokens))
                await message.ack()
                return "taken"
            case pb.OFFER_VERDICT_NOT_YOU:
                await message.nak(delay=_BACK_SECONDS)
                return "not_known"
            case _:
                await message.ack()
                return "not_wanted"

    async def _offer(self, client: Client, job: pb.PrefillJob) -> pb.OfferVerdict.ValueType:
        """A router that does not answer has gone, and nobody waits."""
        from nats.errors import NoRespondersError  # noqa: PLC0415
        from nats.errors import TimeoutError as NoAnswer  # noqa: PLC0415

        offer = pb.PrefillOffer(job_id=job.job_id, address=self._address)
        try:
            answer = await client.request(job.offer_subject, offer.SerializeToString(), timeout=_OFFER_SECONDS)
            return pb.PrefillAnswer.FromString(answer.data).verdict
        except (NoRespondersError, NoAnswer, DecodeError):
            return pb.OFFER_VERDICT_NOT_WANTED

    async def _until_room(self) -> None:
        while not self._has_room():
            await self._clock.sleep(_LOOK_SECONDS)

    def _has_room(self) -> bool:
        now = self._clock.monotonic()
        while self._promised and self._promised[0][0] <= now:
            self._promised.popleft()
        promised = sum(tokens for _, tokens in self._promised)
        return self._is_open() and self._load().outstanding_prefill_tokens + promised < self._max_tokens


@asynccontextmanager
async def _queue(
    jetstream: JetStreamContext, version: ModelVersion
) -> AsyncIterator[JetStreamContext.PullSubscription]:
    """Makes what is not there; whoever comes first does."""
    from nats.errors import Error  # noqa: PLC0415
    from nats.js import api  # noqa: PLC0415
    from nats.js.errors import BadRequestError  # noqa: PLC0415

    stream = api.StreamConfig(
        name=stream_name(version),
        subjects=[subject(version)],
        retention=api.RetentionPolicy.WORK_QUEUE,
        storage=api.StorageType.MEMORY,
        discard=api.DiscardPolicy.NEW,
        max_msgs=_MAX_JOBS,
        max_age=_MAX_AGE_SECONDS,
        duplicate_window=_MAX_AGE_SECONDS,
    )
    consumer = api.ConsumerConfig(
        ack_wait=_ACK_SECONDS, max_deliver=_MAX_DELIVERIES, max_ack_pending=_MAX_JOBS, durable_name=CONSUMER
    )
    with suppress(BadRequestError):  # an operator has made it, with limits of their own
        await jetstream.add_stream(stream)
    jobs = await jetstream.pull_subscribe(subject(version), durable=CONSUMER, stream=stream.name, config=consumer)
    try:
        yield jobs
    finally:
        with suppress(Error):
            await jobs.unsubscribe()
