"""From a `Submit` to the engine's queue, and out of it again.

submit ─▶ check ─▶ ( compile the guide, take over or load the prefix ) ─▶ engine.submit ─▶ … steps … ─▶ RequestEnd
                              │ a task per request                              │
abort, deadline, ─────────────┴── cancels it; told here ────────────────────────┴── engine.abort; its end follows
end of the stream
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

from weir.executor.v1 import executor_pb2 as pb
from weir_chassis.drain_rate import DrainRate
from weir_chassis.errors import DeadlineExceeded, Draining, Overloaded, WeirError
from weir_chassis.telemetry import get_logger
from weir_executor.adapters.table import AdapterTable, HeldAdapter
from weir_executor.deadlines import Deadlines
from weir_executor.engine import Engine
from weir_executor.guided.compiler import GuideCompiler
from weir_executor.guided.guide import CompiledGuide, Guide
from weir_executor.handoff.mapping import to_offered
from weir_executor.handoff.take_over import Offered, TakeOvers
from weir_executor.kv_transfer import KvTransfer, LoadPlan
from weir_executor.kv_transfer.plan import Source
from weir_executor.live_requests import Listener, LiveRequest, LiveRequests
from weir_executor.mapping import Served, seconds_left, to_request, to_submitted_guide
from weir_executor.request import GenerationRequest
from weir_executor.step_output import RequestEnd


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request needs before the engine has it."""

    guide: Guide | None = None  # to be compiled
    take_over: Offered | None = None  # its prompt's blocks, from another executor
    plan: LoadPlan | None = None  # its prompt's blocks, from the kvstore

    def __bool__(self) -> bool:
        return not (self.guide is None and self.take_over is None and self.plan is None)


_NOTHING = _Wanted()


class Admission:
    """Every way in and every way out that the engine did not choose. Used from one event loop."""

    def __init__(
        self,
        engine: Engine,
        served: Served,
        *,
        adapters: AdapterTable,
        requests: LiveRequests,
        deadlines: Deadlines,
        drain_rate: DrainRate,
        transfer: KvTransfer | None,
        take_overs: TakeOvers,
        guides: GuideCompiler | None,
        max_waiting: int,
        draw_seed: Callable[[], int],
    ) -> None:
        """`max_waiting` is the engine's own bound: known here, so that nothing is prepared for what it refuses."""
        self._engine, self._served, self._adapters, self._requests = engine, served, adapters, requests
        self._deadlines, self._drain_rate = deadlines, drain_rate
        self._transfer, self._take_overs, self._guides = transfer, take_overs, guides
        self._max_waiting, self._draw_seed = max_waiting, draw_seed
        self._preparing: set[asyncio.Task[None]] = set()
        self._keys = count(1)
        self._draining = False

    @property
    def is_open(self) -> bool:
        return not self._draining

    def drain(self) -> None:
        """From now on nothing new is admitted; what lives goes on."""
        self._draining = True

    def submit(self, submit: pb.Submit, listener: Listener) -> LiveRequest:
        """The request is queued, or being prepared for it. Its listener hears of it from now on.

        Raises the WeirError with which it was refused; then nothing is held for it.
        """
        self._check_open()
        seconds = seconds_left(submit)
        adapter = self._adapter(submit.adapter)
        request = to_request(
            submit,
            key=next(self._keys),
            served=self._served,
            draw_seed=self._draw_seed,
            adapter=adapter.info if adapter else None,
        )
        wanted = _Wanted(to_submitted_guide(submit, self._served), to_offered(submit, request))
        live = self._admit(request, LiveRequest(request, submit.handle, listener, adapter), submit.request_id, wanted)
        if seconds is not None:
            self._deadlines.add(live.key, seconds)
        return live

    def submit_all(self, requests: Sequence[GenerationRequest], listener: Listener, owner: str) -> list[LiveRequest]:
        """All are queued, their indexes for handles; or none is, and the WeirError of the first refused is raised.

        They get keys of their own. Their caller has no clock but the call's own, and discards them when that ends.
        """
        self._check_open()
        lives: list[LiveRequest] = []
        try:
            for handle, keyless in enumerate(requests):
                request = replace(keyless, key=next(self._keys))
                live = LiveRequest(request, handle, listener, self._adapter(request.adapter))
                lives.append(self._admit(request, live, owner))
        except BaseException:
            for live in lives:
                self.discard(live)
            raise
        return lives

    def abort(self, live: LiveRequest, output_index: int | None = None) -> None:
        """What the caller asked for: it hears the request's end."""
        live.aborted |= output_index is None
        if live.preparing is None:
            self._engine.abort(live.key, output_index)
        elif output_index is None:
            self._forget(live)
            live.listener.hear_end(live, _never_ran(live))
            live.listener.flush()
        else:
            live.early_aborts.add(output_index)

    def discard(self, live: LiveRequest) -> None:
        """Nobody wants to hear of it any more."""
        live.told = True
        self._deadlines.remove(live.key)
        if live.preparing is None:
            self._engine.abort(live.key)
        else:
            self._forget(live)

    def expire(self, key: int) -> None:
        """Its caller's time is over."""
        live = self._requests.get(key)
        assert live is not None, f"deadline of unknown request {key}"
        live.listener.hear_failure(live, DeadlineExceeded("the request's time was over before its end"))
        live.listener.flush()
        self.discard(live)

    def _check_open(self) -> None:
        if self._draining:
            raise Draining("the executor is shutting down and takes no new requests")

    def _adapter(self, named: str) -> HeldAdapter | None:
        return self._adapters.find(named) if named else None

    def _admit(
        self, request: GenerationRequest, live: LiveRequest, owner: str, wanted: _Wanted = _NOTHING
    ) -> LiveRequest:
        # In line from now on: one that is being prepared is not passed by those who come after it and wait.
        request = replace(request, place=request.key)
        known = None if wanted.guide is None or self._guides is None else self._guides.known(wanted.guide)
        if known is not None:
            request, wanted = replace(request, guide=known), replace(wanted, guide=None)
        if wanted or self._transfer is not None:
            self._check_room()
        if wanted.take_over is None:
            wanted = replace(wanted, plan=self._plan(request))
        self._requests.add(live, owner)
        if wanted:
            live.preparing = self._start_preparing(live, request, wanted)
        else:
            try:
                self._enter(request)
            except BaseException:
                self._forget(live)
                raise
        return live

    def _check_room(self) -> None:
        """Raises Overloaded before any effort is made; the engine's own check comes after it.

        Those who are being prepared wait as those in the engine's queue do.
        """
        if self._engine.load().waiting_requests + len(self._preparing) >= self._max_waiting:
            raise self._overloaded(f"{self._max_waiting} requests are waiting already")

    def _plan(self, request: GenerationRequest) -> LoadPlan | None:
        """What to load before the engine has the request, if anything."""
        return None if self._transfer is None else self._transfer.plan(request)

    def _overloaded(self, message: str) -> Overloaded:
        return Overloaded(message, retry_after=self._drain_rate.refuse())

    @contextmanager
    def _saying_when(self) -> Iterator[None]:
        """Who is refused for want of room hears when to come again."""
        try:
            yield
        except Overloaded as error:
            raise self._overloaded(error.message) from error

    def _enter(self, request: GenerationRequest) -> None:
        """Into the engine's queue."""
        with self._saying_when():
            self._engine.submit(request)

    def _start_preparing(self, live: LiveRequest, request: GenerationRequest, wanted: _Wanted) -> asyncio.Task[None]:
        live.waits_for_guide = wanted.take_over is None and wanted.plan is None
        task = asyncio.create_task(self._prepare(live, request, wanted), name="prepare-request")
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)
        return task

    async def _prepare(self, live: LiveRequest, request: GenerationRequest, wanted: _Wanted) -> None:
        """What others do not give in time is computed. Whatever else goes wrong, the caller is told."""
        guide = wanted.guide
        compiling = None if guide is None else asyncio.create_task(self._compile(guide), name="compile-guide")
        try:
            request = await self._with_prefix(live, request, wanted)
            live.waits_for_guide = True  # if it still does
            if compiling is not None:
                request = replace(request, guide=await compiling)
            live.preparing = None
            self._enter(request)
        except Exception as error:
            if not isinstance(error, WeirError):
                get_logger().error("preparing_failed", exc_info=error)
            live.preparing = None
            self._forget(live)
            live.listener.hear_failure(live, error)
            live.listener.flush()
            return
        finally:
            _drop(compiling)
        for output_index in live.early_aborts:
            self._engine.abort(live.key, output_index)

    async def _compile(self, guide: Guide) -> CompiledGuide:
        """Beside the load, because both take their time."""
        assert self._guides is not None, "a guide was let in that nobody can compile"
        with self._saying_when():
            return await self._guides.compile(guide)

    async def _with_prefix(self, live: LiveRequest, request: GenerationRequest, wanted: _Wanted) -> GenerationRequest:
        """From the executor that has computed it, if there is one and it gives any; else from the kvstore."""
        held, plan = None, wanted.plan
        if wanted.take_over is not None:
            state = self._take_overs.hold_state(request, wanted.take_over)
            if state is not None:
                live.release_prefix = state.release
                return replace(request, handed_state=state.state)
            held = await self._take_overs.load(request, wanted.take_over)
            plan = self._plan(request) if held is None else None
        if plan is not None:
            assert self._transfer is not None, "a prefix was planned for that nobody can load"
            held = await self._transfer.load(plan)
        if held is None:
            return request
        live.release_prefix = held.release
        live.source = Source(held.prefix.first_block, held.ranges, self._engine.info.block_size)
        return replace(request, stored_prefix=held.prefix)

    def _forget(self, live: LiveRequest) -> None:
        """Out of here without the engine's word, which does not have it."""
        self._deadlines.remove(live.key)
        self._requests.remove(live.key)
        if live.preparing is not None:
            live.preparing.cancel()
            live.preparing = None


def _never_ran(live: LiveRequest) -> RequestEnd:
    return RequestEnd(live.key, live.prompt_tokens, 0, 0, 0)


def _drop(task: asyncio.Task[CompiledGuide] | None) -> None:
    """If it has not ended, nobody waits for it any more; and what it raised unheard is no news."""
    if task is not None:
        task.cancel()
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
