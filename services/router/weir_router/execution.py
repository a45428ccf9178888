"""Where one request runs: on which executor, and with which postprocess replica, from its first to its last.

    start ──► prefill worker ── handover ──► executor ── lost, stalled, drained ──► another executor ──► …
        └───► postprocess replica ── lost ──► another replica ──► …

It is one way on for all of them: what was drawn is in the journal, and whoever comes next is given that. A handover is
planned, and nobody is told; a worker that fails the request before its first token is replaced in silence; after it the
client is told that its stream goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from weir.executor.v1.executor_pb2 import Submit
from weir.inference.v1.stream_pb2 import Continued
from weir_chassis.background import first_of
from weir_chassis.errors import NoWorker, Overloaded, WeirError, WorkerLost, reason_name
from weir_chassis.telemetry import get_logger
from weir_router.attempt import Attempt
from weir_router.continuation import Mode, may_go_on, mode_of, told
from weir_router.demand import demand_of
from weir_router.dispatch import Dispatch
from weir_router.encoder import hash_blocks
from weir_router.faults.tries import Tries
from weir_router.fleet.views import ExecutorModel, ExecutorView
from weir_router.hedge import Cause, Second
from weir_router.journey import Journey
from weir_router.keeping import Begun, Drawing
from weir_router.legs import Leg, Setback
from weir_router.policies.choose import Choice, choose_postprocessor, prefill_workers
from weir_router.policies.policy import Demand
from weir_router.providers.external import ExternalRequest
from weir_router.request import EncodedPrompt
from weir_router.streams.postprocess_stream import PostprocessStream
from weir_router.worker_messages import opening_of, submit_of

T = TypeVar("T")
# Between two looks for somebody with room; an executor's own hint counts in between.
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.25, 2.0


class Execution:
    def __init__(self, dispatch: Dispatch, journey: Journey, prompt: EncodedPrompt, attempt: Attempt):
        self._routing, self._fleet = dispatch.routing, dispatch.routing.fleet
        self._prefill_queue, self._limits, self._metrics = dispatch.prefill_queue, dispatch.limits, dispatch.metrics
        self._journey, self._request, self._prompt, self._attempt = journey, journey.request, prompt, attempt
        configured = self._routing.config.of_model(prompt.version.model).continuation
        self._mode = mode_of(journey.request.routing.continuation, configured)
        # Of the first executor for all of it, and whether all tokens so far are drawn so.
        self.drawing, self._exact = Drawing(), True
        self._tries = Tries(
            dispatch.retries,
            max_continuations=self._limits.max_continuations,
            wait_seconds=self._limits.wait_seconds,
        )

    @property
    def interrupted(self) -> bool:
        """It is to go on elsewhere."""
        return self._attempt.interrupted

    async def start(self) -> None:
        """Raises a WeirError when nobody may have it."""
        if self._request.keeping.begun is not None:
            await self._take_up(self._request.keeping.begun)
            return
        assigned = await self._assigned_prefill()
        choice = self._choose_first()
        if able := self._prefill_workers(choice):
            choice = self._routing.choose_prefill(choice, self._demand(), able, assigned)
        await self._execute(choice)
        if (seconds := self._hedge_seconds()) is not None:
            self._attempt.hedge_after(seconds)

    async def _take_up(self, begun: Begun) -> None:
        """Goes on after what another router has done of it."""
        self._attempt.take_up(begun)
        self._journey.attempts, self.drawing = begun.attempts, begun.drawing
        if not self._attempt.outputs.drawing:
            return  # only its last words are missing
        setback = Setback("the router", WorkerLost("the router that ran this request was lost"))
        journal = self._attempt.journal
        if not may_go_on(self._mode, drawn=journal.num_drawn > 0, complete=journal.complete):
            raise setback.error
        choice = await self._found(self._choose_another, setback)
        self._note(setback, "router")
        await self._execute(choice)

    async def go_on(self) -> None:
        """With others in place of workers that failed it or are done with it. Raises a WeirError when it cannot."""
        if self._attempt.lane_setback is not None:
            await self._replace_postprocessor(self._attempt.lane_setback)
        if self._attempt.needs_executor:
            if self._attempt.executor_setback is not None:
                await self._replace_executor(self._attempt.executor_setback)
            else:
                await self._execute(self._choose_first())  # after whoever has computed the prompt
        elif self._attempt.second_wanted is not None:
            await self._hedge(self._attempt.second_wanted)

    async def _replace_postprocessor(self, setback: Setback) -> None:
        self._check(setback)
        self._open(self._lane(await self._found(self._choose_postprocessor, setback)))
        self._note(setback, "postprocess")

    async def _replace_executor(self, setback: Setback) -> None:
        self._check(setback)
        choice = await self._found(self._choose_another, setback)
        self._note(setback, "executor")
        await self._execute(choice)

    def _check(self, setback: Setback) -> None:
        """Raises what the client is to be told when it may not go on."""
        journal = self._attempt.journal
        may = may_go_on(self._mode, drawn=journal.num_drawn > 0, complete=journal.complete)
        if not may or not self._may_try(setback.error):
            raise told(setback.error, setback.worker)

    def _may_try(self, error: WeirError) -> bool:
        if drawn := self._attempt.journal.num_drawn:
            return self._tries.may_continue(error, drawn, self._journey.clock.monotonic())
        return self._tries.may_begin_anew(error, self._journey.attempts)

    def _note(self, setback: Setback, kind: str) -> None:
        """Another worker has been found."""
        reason, journey, attempt = reason_name(setback.error.reason), self._journey, self._attempt
        journey.attempts += 1
        attempt.accepted.attempt = journey.attempts
        self._metrics.attempts.labels(reason).inc()
        get_logger().info("gone_on", kind=kind, lost=setback.worker, cause=setback.error.message, exact=self._exact)
        # One without room has never had it: whoever comes after is the one that the client was told of.
        if attempt.journal.num_drawn and not isinstance(setback.error, Overloaded):
            self._note_continued(kind, reason)

    def _note_continued(self, kind: str, reason: str) -> None:
        journey = self._journey
        journey.continuations += 1
        self._metrics.continuations.labels(kind, reason, str(self._exact).lower()).inc()
        self._attempt.tell_continued(Continued(attempt=journey.attempts, reason=reason, exact=self._exact))

    # A second executor beside the first.

    def _hedge_seconds(self) -> float | None:
        """As the client says, else as its model is configured. None: never."""
        asked = self._request.routing
        if asked.HasField("hedge_after"):
            return asked.hedge_after.ToTimedelta().total_seconds()
        return self._routing.config.of_model(self._prompt.version.model).hedge_after_seconds

    async def _hedge(self, cause: Cause) -> None:
        """Where nobody else is there, or the budget is spent, the first is waited for all the same."""
        attempt = self._attempt
        attempt.second_wanted = None
        drawn = attempt.journal.num_drawn > 0
        may = may_go_on(self._mode, drawn=drawn, complete=attempt.journal.complete)
        # Beside whoever takes all of it nobody could go on: it has its own time until it begins to answer.
        if not may or not self._tries.may_have_second or attempt.progress.delegated:
            return
        try:
            choice = self._choose_second(cause)
            executor = self._fleet.executor(choice.executor, self._journey.residency)
            stream = executor.stream
        except WeirError:
            return
        if not self._tries.may_hedge(cause.value, drawn=drawn):
            return
        self._journey.attempts += 1
        tokens, hashes = choice.reserved_tokens, self._prompt.block_hashes
        reservation = self._routing.reserve(executor, tokens, choice.uncached_tokens, hashes)
        second = Second(attempt, stream, Leg(stream, reservation, executor.traits.price), partial(self._taken, choice))
        attempt.hedge(second)
        second.submit(await self._submit(choice.model, hand_off=False))

    def _choose_second(self, cause: Cause) -> Choice:
        """Who of two answers must not decide what the answer is, unless the first may never answer.

        Workers outside the suite draw what they draw, and are paid for what nobody reads.
        """
        drawn = self._attempt.journal.num_drawn > 0
        if drawn and self.drawing.anew:
            raise NoWorker("what has drawn so far draws anew when it is resumed")
        same = cause is Cause.SLOW or drawn
        demand = replace(self._demand(self.drawing.numerics if same else None), needs=None)
        return self._routing.choose(demand, self._journey.residency)

    def _taken(self, choice: Choice) -> None:
        """The second one goes on. After the first token, that is a continuation."""
        self._journey.choice = choice
        self.drawing = Drawing(choice.model.numerics, choice.model.draws_anew)
        if self._attempt.journal.num_drawn:
            self._note_continued("executor", reason_name(WorkerLost.reason))

    # Choosing.

    async def _assigned_prefill(self) -> str | None:
        """Whoever of several prefill workers has room first, when they take their work from a queue."""
        if self._prefill_queue is None:
            return None
        with suppress(WeirError):  # that nobody may be chosen is told by who chooses
            able = self._prefill_workers(self._choose())
            if len(able) > 1:
                workers = {worker.address for worker in able}
                return await self._prefill_queue.assign(self._prompt.version, len(self._prompt.token_ids), workers)
        return None

    def _prefill_workers(self, choice: Choice) -> Sequence[ExecutorView]:
        """Those after whom `choice` could go on. Who does is chosen when the prompt is done: the fleet may change."""
        least = self._limits.disaggregate_tokens
        if self._prompt.num_tokens < least:
            return ()
        return prefill_workers(self._fleet.snapshot().within(self._journey.residency), self._demand(), choice, least)

    def _choose(self, numerics: str | None = None) -> Choice:
        choice = self._routing.choose(self._demand(numerics), self._journey.residency)
        self._journey.choice = choice
        return choice

    def _choose_another(self) -> Choice:
        """For the outputs that are not over: one that draws the same, or any where that is enough for the client."""
        if not self._attempt.journal.num_drawn:
            return self._choose_first()
        try:
            if self.drawing.anew and self._mode is Mode.EXACT:
                raise NoWorker("what has drawn so far draws anew when it is resumed")
            if self._exact and not self.drawing.anew:
                return self._choose(self.drawing.numerics)
        except WeirError:
            if self._mode is Mode.EXACT:
                raise
        choice, self._exact = self._choose(), False
        return choice

    def _choose_first(self) -> Choice:
        """What it draws by is what the client may expect from now on."""
        choice = self._choose()
        self.drawing = Drawing(choice.model.numerics, choice.model.draws_anew)
        return choice

    def _choose_postprocessor(self) -> str:
        demand, snapshot = (
            replace(self._demand(), excluded=self._attempt.workers.used_postprocessors),
            self._fleet.snapshot(),
        )
        found = self._journey.residency.find(lambda place: choose_postprocessor(snapshot.within(place), demand))
        return found.address

    def _demand(self, numerics: str | None = None) -> Demand:
        attempt = self._attempt
        excluded, drawn = attempt.workers.used_executors, attempt.journal.longest
        return demand_of(self._journey, self._prompt, excluded=excluded, drawn=drawn, numerics=numerics)

    async def _found(self, choose: Callable[[], T], setback: Setback) -> T:
        """The choice, as soon as there is one. A client that has been given nothing is better told at once."""
        seconds = self._limits.wait_seconds if self._attempt.journal.num_drawn else 0.0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with suppress(WeirError):
                        return choose()
                    await self._change(setback)
        except TimeoutError:
            # That nobody else is there matters less to the client than what happened.
            raise told(setback.error, setback.worker) from None

    async def _change(self, setback: Setback) -> None:
        """Until there may be somebody: a worker that comes or is well again, or room where there was none."""
        hinted = setback.error.retry_after
        pause = min(max(_MIN_PAUSE_SECONDS, hinted.total_seconds() if hinted else 0.0), _MAX_PAUSE_SECONDS)
        await first_of(self._fleet.change(), self._journey.clock.sleep(pause))
        self._attempt.workers.forgive_full()

    # Executing.

    def _lane(self, postprocessor: str) -> PostprocessStream:
        return self._fleet.postprocessor(postprocessor, self._journey.residency).stream

    def _open(self, lane: PostprocessStream) -> None:
        self._attempt.postprocess(lane, opening_of(self._request, self._prompt.version.model, self._attempt.handle))

    async def _execute(self, choice: Choice) -> None:
        """Counts the request against its executor at once, before anybody else chooses."""
        if choice.external:
            self._delegate(choice)
            return
        lane = self._lane(choice.postprocessor) if self._attempt.needs_postprocessor else None
        executor = self._fleet.executor(choice.first_executor, self._journey.residency)
        prompt = self._prompt
        tokens = choice.reserved_tokens if choice.prefill is None else len(prompt.token_ids) + self._request.n
        reservation = self._routing.reserve(executor, tokens, choice.uncached_tokens, prompt.block_hashes)
        self._attempt.enter(Leg(executor.stream, reservation, executor.traits.price))
        submit = await self._submit(choice.model, hand_off=choice.prefill is not None)
        handoff = self._attempt.handoff
        if handoff is not None and choice.model.block_size == prompt.block_size:
            submit.take_over.CopyFrom(handoff)
        self._attempt.submit(submit)
        if lane is not None:
            self._open(lane)  # while the executor computes: it is not needed before the first tokens

    def _delegate(self, choice: Choice) -> None:
        """A worker outside the suite takes all of it, text to text."""
        worker, journey = self._fleet.externals.worker(choice.executor, self._journey.residency), self._journey
        asked = ExternalRequest(
            self._request,
            self._prompt.version.model,
            journey.attempts,
            self._prompt.num_tokens,
            journey.left_seconds(),
            journey.target.revision if journey.target else "",
        )
        reservation = worker.outstanding.reserve(choice.reserved_tokens, choice.uncached_tokens)
        self._attempt.delegate(self._fleet.externals.call(worker, asked), reservation, worker.traits.price)

    async def _block_hashes(self, model: ExecutorModel) -> bytes:
        prompt = self._prompt
        if model.block_size == prompt.block_size:
            return prompt.block_hashes
        return await hash_blocks(prompt.version, prompt.token_ids, model.block_size, prompt.adapter, prompt.tenant_salt)

    async def _submit(self, model: ExecutorModel, *, hand_off: bool) -> Submit:
        attempt = self._attempt
        hashes = await self._block_hashes(model)
        resumed = attempt.journal.resumed()
        return submit_of(self._journey, self._prompt, hashes, handle=attempt.handle, resumed=resumed, hand_off=hand_off)
