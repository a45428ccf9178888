"""One request's way through the suite: admit → tokenize → choose → execute → postprocess → deliver.

Whatever ends it (its last token, a failure, the deadline, the client's own cancellation), the `with` blocks here give
back what it held: its place in the queue, its reservation on an executor, its handles on both streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from weir.inference.v1.stream_pb2 import Accepted
from weir_chassis.clock import Clock
from weir_chassis.errors import WeirError, reason_name
from weir_chassis.leases import LeaseLedger
from weir_router.admission import Admission
from weir_router.attempt import Attempt
from weir_router.delivery import Event, Outbox
from weir_router.dispatch import Dispatch
from weir_router.execution import Execution
from weir_router.faults.table import before_or_after, verdict
from weir_router.journal import Journal
from weir_router.journey import Journey
from weir_router.metrics import RouterMetrics
from weir_router.models.judging import Judging
from weir_router.models.models import Models
from weir_router.request import ClientRequest, EncodedPrompt
from weir_router.time_limit import TimeLimit, time_limit
from weir_router.write_pace import WritePace

# Of events that are there together: at least one.
Write = Callable[[Sequence[Event]], Awaitable[None]]
Run = Callable[[ClientRequest, Write, float | None], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_pending_tokens`: held for one slow client. `journal_tokens`: of one request, kept to go on with elsewhere.

    `end_wait_seconds`: for an executor's last word.
    """

    max_pending_tokens: int
    journal_tokens: int
    end_wait_seconds: float


class Pipeline:
    def __init__(
        self,
        *,
        dispatch: Dispatch,
        admission: Admission,
        models: Models,
        judging: Judging,
        limits: Limits,
        clock: Clock,
        leases: LeaseLedger,
        metrics: RouterMetrics,
    ):
        self._dispatch, self._retries = dispatch, dispatch.retries
        self._admission, self._models, self._judging, self._limits = admission, models, judging, limits
        self._clock, self._leases, self._metrics = clock, leases, metrics
        self._pace = WritePace()

    async def run(self, request: ClientRequest, write: Write, left_seconds: float | None) -> None:
        """Writes the request's events in the order of stream.proto, or raises a WeirError.

        Of one that another router has begun: those from there on, and one that says that it goes on.
        """
        journey = self._begin(request, left_seconds)
        with self._observed(journey):
            async with time_limit(left_seconds) as limit:
                self._models.check(journey)
                self._retries.note_request()
                async with self._admission.place(request.priority, request.request_id) as journey.admission_seconds:
                    prompt = await self._tokenize(journey)
                    await self._generate(journey, prompt, write, limit)

    def _begin(self, request: ClientRequest, left_seconds: float | None) -> Journey:
        now = self._clock.monotonic()
        expires_at = None if left_seconds is None else now + left_seconds
        return Journey(request, self._clock, started_at=now, expires_at=expires_at)

    async def _tokenize(self, journey: Journey) -> EncodedPrompt:
        start = self._clock.monotonic()
        prompt = await self._models.encode(journey)
        journey.tokenize_seconds = self._clock.monotonic() - start
        return prompt

    async def _generate(self, journey: Journey, prompt: EncodedPrompt, write: Write, limit: TimeLimit) -> None:
        with self._attempt(journey, prompt, limit) as attempt:
            execution = Execution(self._dispatch, journey, prompt, attempt)
            await execution.start()
            if not attempt.progress.delegated:  # else nobody can go on after its tokens
                journey.request.keeping.on_prompt(prompt, execution.drawing)
            rest = await _deliver(attempt.outbox, execution, write)
            rest = await self._until_ended(attempt, rest, write)
            usage = journey.usage(prompt)
            await write([*rest, usage, journey.receipt(prompt, usage)])

    @contextmanager
    def _attempt(self, journey: Journey, prompt: EncodedPrompt, limit: TimeLimit) -> Iterator[Attempt]:
        """Gives back, in the end, what it holds at whichever workers."""
        attempt = Attempt(
            handle=next(self._dispatch.handles),
            n=journey.request.n,
            journal=Journal(journey.request.n, self._limits.journal_tokens),
            outbox=Outbox(self._limits.max_pending_tokens, self._pace),
            accepted=_accepted(journey, prompt),
            progress=journey.progress,
            clock=self._clock,
            metrics=self._metrics,
            on_slow=limit.cut,
        )
        with self._leases.acquire("attempt", journey.request.request_id, on_release=attempt.stop):
            end = "CANCELLED"
            try:
                yield attempt
                end = "OK"
            except WeirError as error:
                end = reason_name(error.reason)
                raise
            finally:
                self._metrics.attempts.labels(end).inc()

    async def _until_ended(self, attempt: Attempt, events: Sequence[Event], write: Write) -> Sequence[Event]:
        """The executor's last word comes a step after a stop string ended an output; it is waited for, not long.

        Returns what of these events is still to be written: all where nothing is waited for.
        """
        if attempt.ended.is_set():
            return events
        if events:
            await write(events)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.end_wait_seconds):
                await attempt.ended.wait()
        return ()

    @contextmanager
    def _observed(self, journey: Journey) -> Iterator[None]:
        """Counts what was refused before the client was told that it was accepted, and what came of all the rest."""
        failure: BaseException | None = None
        progress = journey.progress
        try:
            yield
        except WeirError as error:
            failure = error
            if progress.accepted_at is None:
                self._metrics.refused(error)
            if not verdict(error, before_or_after(answering=progress.delivered_tokens > 0)).billed:
                self._metrics.unbilled_tokens.labels(reason_name(error.reason)).inc(progress.delivered_tokens)
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            self._judging.ended(journey, failure)
            if progress.first_delta_at is not None:
                self._metrics.ttft_seconds.observe(progress.first_delta_at - journey.started_at)
            self._metrics.completion_tokens.inc(progress.delivered_tokens)


async def _deliver(outbox: Outbox, execution: Execution, write: Write) -> Sequence[Event]:
    """Until all of it has come, on however many workers. Returns the last of it, which is not written yet."""
    while True:
        events = await outbox.take()
        if outbox.closed and outbox.error is None and not execution.interrupted:
            return events
        if events:
            await write(events)
        if execution.interrupted:
            await execution.go_on()


def _accepted(journey: Journey, prompt: EncodedPrompt) -> Accepted:
    version = prompt.version.message()
    return Accepted(request_id=journey.request.request_id, attempt=journey.attempts, model_version=version)
