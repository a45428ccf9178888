"""One request's way through the suite: admit → tokenize → choose → execute → postprocess → deliver.

Whatever ends it (its last token, a failure, the deadline, the client's own cancellation), the `with` blocks here give
back what it held: its place in the queue, its reservation on an executor, its handles on both streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count

from weir.executor.v1.executor_pb2 import Submit
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.inference.v1.stream_pb2 import Accepted
from weir.postprocess.v1.postprocess_pb2 import Open
from weir_chassis.clock import Clock
from weir_chassis.errors import NoWorker, WeirError, reason_name
from weir_chassis.leases import LeaseLedger
from weir_router.admission import Admission
from weir_router.attempt import Attempt, Leg
from weir_router.delivery import Event, Outbox
from weir_router.encoder import hash_blocks
from weir_router.faults.retries import Retries
from weir_router.faults.table import before_or_after, verdict
from weir_router.journey import Journey, duration
from weir_router.metrics import RouterMetrics
from weir_router.models.models import Models
from weir_router.policies.choose import Choice, prefill_workers
from weir_router.policies.forecast import LimitsUnmet
from weir_router.policies.policy import Demand
from weir_router.prefill_queue import PrefillQueue
from weir_router.request import ClientRequest, EncodedPrompt
from weir_router.routing import Routing
from weir_router.time_limit import TimeLimit, time_limit
from weir_router.two_stages import Seat, TwoStages

Write = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_pending_tokens`: held for one slow client. `end_wait_seconds`: for an executor's last word.

    `disaggregate_tokens`: from so many on, a prompt is computed by an executor that is there for that.
    """

    max_pending_tokens: int
    end_wait_seconds: float
    disaggregate_tokens: int


class Pipeline:
    def __init__(
        self,
        *,
        routing: Routing,
        prefill_queue: PrefillQueue | None,
        admission: Admission,
        models: Models,
        retries: Retries,
        limits: Limits,
        clock: Clock,
        leases: LeaseLedger,
        metrics: RouterMetrics,
    ):
        self._routing, self._fleet = routing, routing.fleet
        self._admission, self._models, self._limits = admission, models, limits
        self._prefill_queue, self._retries = prefill_queue, retries
        self._clock, self._leases, self._metrics = clock, leases, metrics
        # Of attempts, so that no handle is ever used twice on any stream.
        self._handles = count(1)

    async def run(self, request: ClientRequest, write: Write, left_seconds: float | None) -> None:
        """Writes the request's events in the order of stream.proto, or raises a WeirError."""
        journey = self._begin(request, left_seconds)
        with self._observed(journey):
            async with time_limit(left_seconds) as limit:
                self._models.check(request)
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
        """Attempts until one succeeds or fails for good. `excluded` are the workers that failed it."""
        excluded: frozenset[str] = frozenset()
        failure: WeirError | None = None
        for journey.attempts in count(1):
            prefill = await self._assigned_prefill(journey, prompt, excluded)
            choice = self._choose(journey, prompt, excluded, failure, prefill)
            with self._attempt(journey, prompt, choice, limit) as attempt:
                try:
                    journey.choice = choice
                    await self._execute(attempt, journey, prompt, choice)
                    await _deliver(attempt, write)
                    await self._conclude(attempt, journey, prompt, write)
                    return
                except WeirError as error:
                    where = before_or_after(answering=attempt.progress.answering)
                    if attempt.progress.answering or not self._retries.may_retry(error, where, journey.attempts):
                        raise
                    failure, excluded = error, excluded | attempt.progress.failed_workers

    async def _assigned_prefill(self, journey: Journey, prompt: EncodedPrompt, excluded: frozenset[str]) -> str | None:
        """Whoever of several prefill workers has room first, when they take their work from a queue."""
        if self._prefill_queue is None:
            return None
        demand, snapshot = _demand(journey, prompt, excluded), self._fleet.snapshot().within(journey.residency)
        with suppress(WeirError):  # that nobody may be chosen is told by who chooses
            choice = self._routing.choose(demand, journey.residency)
            able = prefill_workers(snapshot, demand, choice, self._limits.disaggregate_tokens)
            if len(able) > 1:
                workers = {worker.address for worker in able}
                return await self._prefill_queue.assign(prompt.version, demand.prompt_tokens, workers)
        return None

    def _choose(
        self,
        journey: Journey,
        prompt: EncodedPrompt,
        excluded: frozenset[str],
        failure: WeirError | None,
        assigned: str | None,
    ) -> Choice:
        """`assigned`: who has asked for the prompt; it may have gone since."""
        demand, snapshot = _demand(journey, prompt, excluded), self._fleet.snapshot().within(journey.residency)
        try:
            choice = self._routing.choose(demand, journey.residency)
        except (NoWorker, LimitsUnmet) as error:
            # That nobody else is there matters less to the client than what happened.
            raise failure or error from None
        able = prefill_workers(snapshot, demand, choice, self._limits.disaggregate_tokens)
        return self._routing.choose_prefill(choice, demand, able, assigned)

    @contextmanager
    def _attempt(self, journey: Journey, prompt: EncodedPrompt, choice: Choice, limit: TimeLimit) -> Iterator[Attempt]:
        """Counts the request against its executor at once, before anybody else chooses."""
        executor = self._fleet.executor(choice.first_executor, journey.residency)
        reserved = choice.reserved_tokens if choice.prefill is None else len(prompt.token_ids) + journey.request.n
        outbox = Outbox(self._limits.max_pending_tokens)
        attempt = Attempt(
            handle=next(self._handles),
            n=journey.request.n,
            executor=executor.stream,
            lane=self._fleet.postprocessor(choice.postprocessor, journey.residency).stream,
            reservation=executor.outstanding.reserve(reserved, choice.uncached_tokens),
            outbox=outbox,
            accepted=None if journey.accepted_at is not None else _accepted(journey, prompt),
            clock=self._clock,
            metrics=self._metrics,
            on_slow=limit.cut,
        )
        with self._leases.acquire("attempt", journey.request.request_id, on_release=attempt.stop):
            end = "CANCELLED"
            try:
                yield attempt
                end = "OK"
            finally:
                error = attempt.outbox.error
                journey.note(attempt.progress)
                self._metrics.attempts.labels(reason_name(error.reason) if error else end).inc()

    async def _execute(self, attempt: Attempt, journey: Journey, prompt: EncodedPrompt, choice: Choice) -> None:
        hashes, model = prompt.block_hashes, choice.model
        if model.block_size != prompt.block_size:
            hashes = await hash_blocks(
                prompt.version, prompt.token_ids, model.block_size, prompt.adapter, prompt.tenant_salt
            )
        request, left = journey.request, journey.left_seconds()
        submit = Submit(
            handle=attempt.handle,
            request_id=request.request_id,
            model_version=prompt.version.message(),
            token_ids=prompt.token_ids,
            block_hashes=hashes,
            adapter=prompt.adapter,
            tenant_salt=prompt.tenant_salt,
            sampling=request.sampling,
            stopping=_without_strings(request.stopping),
            priority=request.priority,
            tenant=request.tenant,
            time_left=None if left is None else duration(left),
            hand_off=choice.prefill is not None,
        )
        sink = None
        if choice.prefill is not None:
            find_seat = partial(self._find_seat, journey, prompt)
            sink = TwoStages(attempt, submit, model.block_size, find_seat, self._retries)
        attempt.start(submit, _opening(attempt.handle, request, prompt), sink)

    def _find_seat(self, journey: Journey, prompt: EncodedPrompt, excluded: frozenset[str]) -> Seat:
        """Chosen only now: what is true of the fleet may have changed since the prompt was begun."""
        choice = self._routing.choose(_demand(journey, prompt, excluded), journey.residency)
        executor = self._fleet.executor(choice.executor, journey.residency)
        journey.choice = choice
        leg = Leg(executor.stream, executor.outstanding.reserve(choice.reserved_tokens))
        return Seat(leg, choice.model.block_size, journey.left_seconds())

    async def _conclude(self, attempt: Attempt, journey: Journey, prompt: EncodedPrompt, write: Write) -> None:
        """The executor's last word comes a step after a stop string ended an output; it is waited for, not long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.end_wait_seconds):
                await attempt.ended.wait()
        await write(journey.usage(prompt, attempt.progress))
        await write(journey.receipt(prompt, attempt.progress))

    @contextmanager
    def _observed(self, journey: Journey) -> Iterator[None]:
        """Counts what was refused before the client was told that it was accepted, and what came of all the rest."""
        failure: BaseException | None = None
        try:
            yield
        except WeirError as error:
            failure = error
            if journey.accepted_at is None:
                self._metrics.refused(error)
            if not verdict(error, before_or_after(answering=journey.delivered_tokens > 0)).billed:
                self._metrics.unbilled_tokens.labels(reason_name(error.reason)).inc(journey.delivered_tokens)
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            self._models.ended(journey, failure)
            if journey.first_delta_at is not None:
                self._metrics.ttft_seconds.observe(journey.first_delta_at - journey.started_at)
            self._metrics.completion_tokens.inc(journey.delivered_tokens)


async def _deliver(attempt: Attempt, write: Write) -> None:
    while events := await attempt.outbox.take():
        for event in events:
            await write(event)


def _demand(journey: Journey, prompt: EncodedPrompt, excluded: frozenset[str]) -> Demand:
    return Demand(
        version=prompt.version,
        prompt_tokens=len(prompt.token_ids),
        max_tokens=_max_tokens(journey.request.stopping),
        n=journey.request.n,
        turn=journey.turn,
        excluded=excluded,
        adapter=prompt.adapter,
        session=journey.request.routing.session,
        max_ttft_seconds=journey.ttft_left_seconds(),
        max_cost_micros=journey.bounds.max_cost_micros if journey.bounds else None,
    )


def _accepted(journey: Journey, prompt: EncodedPrompt) -> Accepted:
    version = prompt.version.message()
    return Accepted(request_id=journey.request.request_id, attempt=journey.attempts, model_version=version)


def _opening(handle: int, request: ClientRequest, prompt: EncodedPrompt) -> Open:
    return Open(
        handle=handle,
        model=prompt.version.model,
        n=request.n,
        stop=request.stopping.stop,
        include_stop_in_output=request.stopping.include_stop_in_output,
        skip_special_tokens=request.skip_special_tokens,
    )


def _without_strings(stopping: StoppingConditions) -> StoppingConditions:
    """Stop strings are postprocess's business; an executor refuses them."""
    tokens_only = StoppingConditions()
    tokens_only.CopyFrom(stopping)
    tokens_only.ClearField("stop")
    tokens_only.ClearField("include_stop_in_output")
    return tokens_only


def _max_tokens(stopping: StoppingConditions) -> int | None:
    return stopping.max_tokens if stopping.HasField("max_tokens") else None
