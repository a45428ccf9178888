"""The step loop: one thread that schedules, runs, samples and emits, and the thread-safe door to it.

    submit, abort ──▶ inbox ──▶ │ take in → schedule → run → emit │ ──▶ deliver(StepOutput)
    (any thread)                │ (this thread, one step a round) │

What computes is a `Worker`: the PyTorch model, or arithmetic in the fake. The loop knows neither torch nor gRPC.

Errors have three sizes. A result that is an error ends its request. An exception in `Worker.run` ends the requests of
that batch, and the loop goes on as soon as a small request of its own has proved the worker. Anything else, what the
worker calls fatal, and failure after failure, stops the loop and shows in `check_health`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weir_chassis.errors import AlreadyExists, Draining, Internal, NotFound, Overloaded, WeirError, WorkerLost
from weir_executor.adapters.config import AdapterConfig
from weir_executor.engine import (
    AdapterInfo,
    Deliver,
    EngineInfo,
    EngineLoad,
    FullBlock,
    GenerationRequest,
    PoolingKind,
    RequestState,
    StepOutput,
    StepStats,
    Wants,
)
from weir_executor.guided.guide import GuideState
from weir_executor.paged.adapters import Adapters, NoAdapters
from weir_executor.paged.batch import Batch, NewBlock
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.census import request_state
from weir_executor.paged.chunk_size import ChunkSize
from weir_executor.paged.guides import start_guides
from weir_executor.paged.held_reads import HeldReads
from weir_executor.paged.offers import Offers
from weir_executor.paged.outcomes import Outcomes
from weir_executor.paged.report import Report, request_end, token_output
from weir_executor.paged.scheduler import Scheduler, SchedulerLimits
from weir_executor.paged.self_test import run_self_test
from weir_executor.paged.sequence import LiveRequest
from weir_executor.paged.speculation.drafter import MAX_DRAFT_TOKENS, Drafter
from weir_executor.paged.step_meter import StepMeter, count
from weir_executor.paged.validation import check_quota, check_request
from weir_executor.paged.watched_worker import WatchedWorker
from weir_executor.paged.worker import Result, Worker

_log = logging.getLogger(__name__)
# A step takes well under a second; a thread that has not come back by then hangs in a device call and is left behind.
_JOIN_SECONDS = 10.0
# Warming up may compile kernels and record graphs; what takes longer than this hangs.
_WARM_UP_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class LoopOptions:
    max_waiting: int  # requests; beyond it a queue only turns load into latency
    emit_full_blocks: bool = False
    offered_blocks_per_second: float | None = None  # while requests run; None: as they become full
    prefix_cache: bool = True
    kv_ttl_seconds: float | None = None  # of blocks that nobody uses; None: until their room is needed
    itl_target_seconds: float | None = None  # of a step that decodes; None: steps as large as they may be
    warm_up: bool = False  # run a small request before any other
    check_integrity: bool = False  # after every step: for tests
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class _Abort:
    key: int
    output_index: int | None


@dataclass(frozen=True, slots=True)
class _Release:
    """Of what an ended request left."""

    key: int


class StepLoop:
    """An `Engine` around a `Worker`."""

    def __init__(
        self,
        info: EngineInfo,
        limits: SchedulerLimits,
        worker: Worker,
        options: LoopOptions,
        *,
        adapters: Adapters | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self._drafter = drafter or Drafter()
        self._info = replace(info, speculation_modes=self._drafter.modes, max_draft_tokens=MAX_DRAFT_TOKENS)
        self._worker, self._options = worker, options
        self._adapters: Adapters = adapters or NoAdapters()
        self._pool = BlockPool(info.num_blocks, prefix_cache=options.prefix_cache, ttl_seconds=options.kv_ttl_seconds)
        self._offers = Offers(options.offered_blocks_per_second, self._pool.holds, info.num_blocks)
        self._limits, self._scheduler = limits, Scheduler(self._pool, limits, worker.count_usable)
        self._deliver: Deliver = _drop
        self._wants: Wants = _everything
        self._inbox: deque[LiveRequest | _Abort | _Release] = deque()
        self._wake = threading.Condition()  # guards the inbox, the keys, `_closing` and `_ended`
        self._held_reads = HeldReads(self._scheduler.held, worker, self._ring)
        self._live: dict[int, LiveRequest] = {}  # from submit to RequestEnd, for `submit` and the very end
        self._arrivals = 0
        self._queued = 0  # requests in the inbox
        self._closing = False
        self._ended = False
        self._error: BaseException | None = None
        self._ready = threading.Event()  # the first request can be served, or never will be
        self._start_error: BaseException | None = None
        self._watched = WatchedWorker(worker, self._test_worker)
        self._outcomes = Outcomes(self._scheduler, worker, self._drafter, options.clock)
        self._steps, self._last_step_seconds, self._meter = 0, 0.0, StepMeter()
        least = min(info.block_size, limits.max_batched_tokens)  # less than a block at a time is no prefill
        self._chunk = ChunkSize(options.itl_target_seconds, least=least, most=limits.max_batched_tokens)
        self._load = self._measure()
        self._thread = threading.Thread(target=self._run, name=f"{info.engine}-steps", daemon=True)

    # ── any thread ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def info(self) -> EngineInfo:
        return self._info

    def start(self, deliver: Deliver, wants: Wants | None = None) -> None:
        self._deliver, self._wants = deliver, wants or _everything
        self._thread.start()
        if not self._ready.wait(_WARM_UP_SECONDS):
            raise Internal(f"the engine has not warmed up in {_WARM_UP_SECONDS:g} s")
        if self._start_error is not None:
            raise self._start_error

    def submit(self, request: GenerationRequest) -> None:
        check_request(request, self._info)
        check_quota(request, self._limits.tenants.of(request.tenant), self._info)
        stop_token_ids = self._stop_token_ids(request)
        guides = start_guides(request, stop_token_ids)
        if request.adapter and request.adapter not in self._adapters:
            raise NotFound(request.adapter, f"adapter {request.adapter!r} is not loaded here")
        with self._wake:
            self._check_open()
            if request.key in self._live:
                raise AlreadyExists(str(request.key), f"a request with key {request.key} is live")
            if self._queued + self._load.waiting_requests >= self._options.max_waiting:
                raise Overloaded(f"{self._options.max_waiting} requests are waiting already")
            self._arrivals += 1
            live = self._new_live(request, stop_token_ids, guides)
            self._live[request.key] = live
            self._queued += 1
            self._inbox.append(live)
            self._wake.notify()

    def abort(self, key: int, output_index: int | None = None) -> None:
        with self._wake:
            if key in self._live:
                self._inbox.append(_Abort(key, output_index))
                self._wake.notify()

    def cached_prefix_blocks(self, block_hashes: Sequence[bytes]) -> int:
        return len(self._pool.match(block_hashes))

    def read_held(self, key: int, first: int, count: int) -> Sequence[bytes] | None:
        return self._held_reads.read(key, first, count)

    def release_held(self, key: int) -> None:
        with self._wake:
            if not self._ended:
                self._inbox.append(_Release(key))
                self._wake.notify()

    def load_adapter(
        self, name: str, directory: Path, config: AdapterConfig, note: Callable[[int, int], None]
    ) -> AdapterInfo:
        return self._adapters.load(name, directory, config, note)

    def unload_adapter(self, name: str) -> None:
        with self._wake:
            users = [live.key for live in self._live.values() if live.request.adapter == name]
        assert not users, f"adapter {name!r} is used by requests {users}"
        self._adapters.unload(name)

    def load(self) -> EngineLoad:
        with self._wake:
            return replace(self._load, waiting_requests=self._load.waiting_requests + self._queued)

    def requests(self) -> Sequence[RequestState]:
        with self._wake:
            lives = list(self._live.values())
        now = self._options.clock()
        return [request_state(live, self._scheduler, now) for live in lives]

    def check_health(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._worker.close()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)
        self._end_all(WorkerLost("the engine stopped"))

    def _ring(self) -> None:
        with self._wake:
            self._wake.notify()

    def _check_open(self) -> None:
        if self._error is not None:
            raise WorkerLost("the engine has failed")
        if self._closing:
            raise Draining("the engine is closed")

    def _stop_token_ids(self, request: GenerationRequest) -> frozenset[int]:
        return request.stop_token_ids | (frozenset() if request.ignore_eos else self._info.eos_token_ids)

    def _new_live(
        self, request: GenerationRequest, stop_token_ids: frozenset[int], guides: list[GuideState]
    ) -> LiveRequest:
        has_root = bool(request.block_hashes) or (
            len(request.token_ids) < self._info.block_size and bool(request.cache_scope)
        )
        takes_blocks = request.pooling is None or request.pooling.kind is not PoolingKind.MEAN
        stored = request.stored_prefix if takes_blocks else None
        return LiveRequest(
            request=replace(request, stored_prefix=None),  # payloads are large: they go once they are in the pool
            arrival=self._arrivals,
            stop_token_ids=stop_token_ids,
            shares_blocks=has_root and takes_blocks and self._options.prefix_cache,
            submitted_at=self._options.clock(),
            stored_blocks=list(stored.blocks) if stored else [],
            first_stored_block=stored.first_block if stored else 0,
            guides=guides,
        )

    # ── the step thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        end: WeirError = Draining("the engine is closing")
        try:
            self._worker.begin()
            self._warm_up()
            self._ready.set()
            while self._await_work():
                self._step()
        except BaseException as error:
            _log.exception("the step loop stopped")
            self._error = error
            self._start_error = None if self._ready.is_set() else error
            self._ready.set()
            end = WorkerLost(f"the engine failed: {type(error).__name__}")
        else:
            for live in list(self._scheduler.live.values()):
                self._scheduler.finish_all(live)
            self._scheduler.held.drop_all()
            self._load = self._measure()
        self._end_all(end)

    def _warm_up(self) -> None:
        if self._options.warm_up:
            started = self._options.clock()
            _log.info("warming up: a small request before all others")
            self._test_worker()
            _log.info("warm after %.2f s", self._options.clock() - started)

    def _test_worker(self) -> None:
        run_self_test(self._pool, self._limits, self._worker, self._info)

    def _await_work(self) -> bool:
        """Sleep until there is something to do, or a block is over its time; False when the engine closes."""
        with self._wake:
            self._wake.wait_for(self._has_work, self._pool.seconds_to_expiry)
            return not self._closing

    def _has_work(self) -> bool:
        return bool(self._closing or self._inbox or self._scheduler.live or self._offers or self._held_reads)

    def _step(self) -> None:
        started, report = self._options.clock(), Report()
        self._pool.expire(started)
        self._take_in(report)
        batch = self._scheduler.schedule(self._chunk.tokens)
        self._drafter.add_drafts(batch, self._scheduler)
        stats = count(batch)
        self._note_scheduled(batch, started)
        self._outcomes.take(batch, self._results(batch), report)
        if self._options.check_integrity:
            self._scheduler.check_integrity()
        self._steps += 1
        self._last_step_seconds = self._options.clock() - started
        if batch.scheduled:
            self._note_step(stats)
        self._say(report)
        self._held_reads.do_asked()
        self._watched.prove(self._closes_within)

    def _note_step(self, stats: StepStats) -> None:
        seconds = self._last_step_seconds
        self._meter.note(stats, seconds)
        self._chunk.observe(seconds, prefill_tokens=stats.prefill_tokens, decode_tokens=stats.decode_tokens)

    def _take_in(self, report: Report) -> None:
        with self._wake:
            inbox, self._inbox = self._inbox, deque()
            self._queued = 0
            # Until the step is over, those just taken in count as waiting.
            self._load = replace(self._load, waiting_requests=self._load.waiting_requests + _count_requests(inbox))
        for item in inbox:
            if isinstance(item, _Abort):
                self._abort(item, report)
            elif isinstance(item, _Release):
                self._scheduler.held.release(item.key)
            else:
                self._add(item, report)

    def _add(self, live: LiveRequest, report: Report) -> None:
        self._scheduler.add(live)
        for sequence in list(live.sequences):
            # A resumed output may have been over already; its caller just did not hear.
            if sequence.finish_reason() is not None:
                report.outputs.append(token_output(sequence, sequence.num_generated))
                self._outcomes.finish(sequence, report)

    def _abort(self, abort: _Abort, report: Report) -> None:
        live = self._scheduler.live.get(abort.key)
        if live is None:
            return
        if abort.output_index is None:
            self._outcomes.abort(live, report)
            return
        for sequence in list(live.sequences):
            if sequence.output_index == abort.output_index:
                self._outcomes.finish(sequence, report)

    def _results(self, batch: Batch) -> Sequence[Result]:
        if not batch.scheduled:
            return []
        started = self._options.clock()
        results = self._watched.run(batch)
        if self._watched.is_proven:
            self._drafter.observe_step(batch.num_tokens, self._options.clock() - started)
        return results

    def _closes_within(self, seconds: float) -> bool:
        with self._wake:
            return self._wake.wait_for(lambda: self._closing, seconds)

    def _note_scheduled(self, batch: Batch, now: float) -> None:
        for scheduled in batch.scheduled:
            live = scheduled.sequence.live
            if live.scheduled_at is None:
                live.scheduled_at = now

    def _say(self, report: Report) -> None:
        """Deliver the step, and only then show its load: who sees a request gone from the load has heard its end."""
        full_blocks = self._offer(report.new_blocks)
        output = StepOutput(report.outputs, report.ended, full_blocks, self._pool.take_events())
        with self._wake:
            if self._ended:
                return  # `close` gave up on this thread, and every request has had its last word
            for end in report.ended:
                del self._live[end.key]
        if output.outputs or output.ended or output.full_blocks or output.kv_events:
            self._deliver(output)
        with self._wake:
            self._load = self._measure()

    def _offer(self, new_blocks: Sequence[NewBlock]) -> Sequence[FullBlock]:
        """Copies of the full blocks whose time has come, and that are wanted."""
        if self._options.emit_full_blocks:
            self._offers.add(new_blocks)
        if not self._offers:
            return ()
        due = self._offers.take(self._options.clock(), self._wants, busy=bool(self._scheduler.live))
        payloads = self._worker.read_blocks([block.block_id for block in due]) if due else ()
        return [
            FullBlock(block.cache_scope, block.block_hash, block.parent_block_hash, payload, block.tenant)
            for block, payload in zip(due, payloads, strict=True)
        ]

    def _measure(self) -> EngineLoad:
        scheduler, pool, meter = self._scheduler, self._pool, self._meter
        return EngineLoad(
            step=self._steps,
            waiting_requests=scheduler.num_waiting_requests,
            running_sequences=scheduler.num_running,
            free_blocks=pool.num_free,
            total_blocks=pool.num_blocks,
            cached_blocks=pool.num_cached,
            outstanding_tokens=scheduler.outstanding_tokens,
            preemptions=scheduler.preemptions,
            progress=scheduler.progress,
            last_step_seconds=self._last_step_seconds,
            last_batch=meter.last,
            prefill_tokens=meter.prefill_tokens,
            decode_tokens=meter.decode_tokens,
            draft_tokens=meter.draft_tokens,
            busy_seconds=meter.busy_seconds,
            chunk_tokens=self._chunk.tokens,
            outstanding_prefill_tokens=scheduler.outstanding_prefill_tokens,
            prefill_token_seconds=meter.prefill_token_seconds.estimate,
            held_blocks=scheduler.held.num_blocks,
        )

    def _end_all(self, error: WeirError) -> None:
        """The last words of every live request, once, from whichever thread comes first."""
        with self._wake:
            if self._ended:
                return
            self._ended = True
            ends = [request_end(live, self._options.clock(), error) for live in self._live.values()]
            self._live.clear()
            self._inbox.clear()
            self._queued = 0
        try:
            self._held_reads.close()
            if ends:
                self._deliver(StepOutput(ended=ends))
        except Exception:
            _log.exception("nobody heard the last words of %d requests", len(ends))


def _count_requests(inbox: deque[LiveRequest | _Abort | _Release]) -> int:
    return sum(isinstance(item, LiveRequest) for item in inbox)


def _everything(_: bytes) -> bool:
    return True


def _drop(_: StepOutput) -> None:
    """Before `start` there is nobody to hear."""
