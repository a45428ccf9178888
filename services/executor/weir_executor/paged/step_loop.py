"""The step loop: one thread that schedules, runs, samples and emits.

    door ──▶ │ take in → schedule → run → emit │ ──▶ deliver(StepOutput)
             │ (this thread, one step a round) │

What computes is a `Worker`: the PyTorch model, or arithmetic in the fake. The loop knows neither torch nor gRPC.

Errors have three sizes. A result that is an error ends its request. An exception in `Worker.run` ends the requests of
that batch, and the loop goes on as soon as a small request of its own has proved the worker. Anything else, what the
worker calls fatal, and failure after failure, stops the loop and shows in `check_health`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weir_chassis.errors import Draining, Internal, WeirError, WorkerLost
from weir_executor.engine import Deliver, EngineInfo, EngineLoad, StepStats, Wants
from weir_executor.paged.batch import Batch, NewBlock
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.chunk_size import ChunkSize
from weir_executor.paged.door import Abort, Door, Release
from weir_executor.paged.engine_load import engine_load
from weir_executor.paged.held_reads import HeldReads
from weir_executor.paged.offers import Offers
from weir_executor.paged.outcomes import Outcomes
from weir_executor.paged.report import Report, request_end, token_output
from weir_executor.paged.scheduler import Scheduler, SchedulerLimits
from weir_executor.paged.self_test import run_self_test
from weir_executor.paged.sequence import LiveRequest
from weir_executor.paged.speculation.drafter import Drafter
from weir_executor.paged.step_meter import StepMeter, count
from weir_executor.paged.watched_worker import WatchedWorker
from weir_executor.paged.worker import Result, Worker
from weir_executor.step_output import FullBlock, StepOutput

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


class StepLoop:
    """For any thread: `start`, `close`, `door`, `held_reads`, what the scheduler calls safe. All else is its own."""

    def __init__(
        self, info: EngineInfo, limits: SchedulerLimits, worker: Worker, options: LoopOptions, drafter: Drafter
    ) -> None:
        self._info, self._limits, self._worker, self._options, self._drafter = info, limits, worker, options, drafter
        self._pool = BlockPool(info.num_blocks, prefix_cache=options.prefix_cache, ttl_seconds=options.kv_ttl_seconds)
        self._offers = Offers(options.offered_blocks_per_second, self._pool.holds, info.num_blocks)
        self.scheduler = Scheduler(self._pool, limits, worker.count_usable)
        least = min(info.block_size, limits.max_batched_tokens)  # less than a block at a time is no prefill
        self._chunk = ChunkSize(options.itl_target_seconds, least=least, most=limits.max_batched_tokens)
        self._meter = StepMeter()
        self.door = Door(options.max_waiting, self._load())
        self.held_reads = HeldReads(self.scheduler.held, worker, self.door.ring)
        self._watched = WatchedWorker(worker, self._test_worker)
        self._outcomes = Outcomes(self.scheduler, worker, drafter, options.clock)
        self._deliver: Deliver = _drop
        self._wants: Wants = _everything
        self._ready = threading.Event()  # the first request can be served, or never will be
        self._start_error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"{info.engine}-steps", daemon=True)

    def start(self, deliver: Deliver, wants: Wants | None = None) -> None:
        """See `Engine.start`."""
        self._deliver, self._wants = deliver, wants or _everything
        self._thread.start()
        if not self._ready.wait(_WARM_UP_SECONDS):
            raise Internal(f"the engine has not warmed up in {_WARM_UP_SECONDS:g} s")
        if self._start_error is not None:
            raise self._start_error

    def close(self) -> None:
        """See `Engine.close`."""
        self.door.close()
        self._worker.close()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)
        self._end_all(WorkerLost("the engine stopped"))

    def _run(self) -> None:
        end: WeirError = Draining("the engine is closing")
        try:
            self._worker.begin()
            self._warm_up()
            self._ready.set()
            # Wakes for a block that is over its time, too.
            while self.door.await_work(self._has_work, self._pool.seconds_to_expiry):
                self._step()
        except BaseException as error:
            _log.exception("the step loop stopped")
            self.door.fail(error)
            self._start_error = None if self._ready.is_set() else error
            self._ready.set()
            end = WorkerLost(f"the engine failed: {type(error).__name__}")
        else:
            for live in list(self.scheduler.live.values()):
                self.scheduler.finish_all(live)
            self.scheduler.held.drop_all()
            self.door.show(self._load())
        self._end_all(end)

    def _warm_up(self) -> None:
        if self._options.warm_up:
            started = self._options.clock()
            _log.info("warming up: a small request before all others")
            self._test_worker()
            _log.info("warm after %.2f s", self._options.clock() - started)

    def _test_worker(self) -> None:
        run_self_test(self._pool, self._limits, self._worker, self._info)

    def _has_work(self) -> bool:
        return bool(self.scheduler.live or self._offers or self.held_reads)

    def _step(self) -> None:
        started, report = self._options.clock(), Report()
        self._pool.expire(started)
        self._take_in(report)
        batch = self.scheduler.schedule(self._chunk.tokens)
        self._drafter.add_drafts(batch, self.scheduler)
        stats = count(batch)
        self._note_scheduled(batch, started)
        self._outcomes.take(batch, self._results(batch), report)
        if self._options.check_integrity:
            self.scheduler.check_integrity()
        self._note_step(stats, self._options.clock() - started)
        self._say(report)
        self.held_reads.do_asked()
        self._watched.prove(self.door.closes_within)

    def _note_step(self, stats: StepStats, seconds: float) -> None:
        self._meter.note(stats, seconds)
        self._chunk.observe(seconds, prefill_tokens=stats.prefill_tokens, decode_tokens=stats.decode_tokens)

    def _take_in(self, report: Report) -> None:
        for item in self.door.take_in():
            if isinstance(item, Abort):
                self._abort(item, report)
            elif isinstance(item, Release):
                self.scheduler.held.release(item.key)
            else:
                self._add(item, report)

    def _add(self, live: LiveRequest, report: Report) -> None:
        self.scheduler.add(live)
        for sequence in list(live.sequences):
            # A resumed output may have been over already; its caller just did not hear.
            if sequence.finish_reason() is not None:
                report.outputs.append(token_output(sequence, sequence.num_generated))
                self._outcomes.finish(sequence, report)

    def _abort(self, abort: Abort, report: Report) -> None:
        live = self.scheduler.live.get(abort.key)
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

    def _note_scheduled(self, batch: Batch, now: float) -> None:
        for scheduled in batch.scheduled:
            live = scheduled.sequence.live
            if live.scheduled_at is None:
                live.scheduled_at = now

    def _say(self, report: Report) -> None:
        """Deliver the step, and only then show its load: who sees a request gone from the load has heard its end."""
        full_blocks = self._offer(report.new_blocks)
        output = StepOutput(report.outputs, report.ended, full_blocks, self._pool.take_events())
        if not self.door.forget(report.ended):
            return  # `close` gave up on this thread
        if output.outputs or output.ended or output.full_blocks or output.kv_events:
            self._deliver(output)
        self.door.show(self._load())

    def _offer(self, new_blocks: Sequence[NewBlock]) -> Sequence[FullBlock]:
        """Copies of the full blocks whose time has come, and that are wanted."""
        if self._options.emit_full_blocks:
            self._offers.add(new_blocks)
        if not self._offers:
            return ()
        due = self._offers.take(self._options.clock(), self._wants, busy=bool(self.scheduler.live))
        payloads = self._worker.read_blocks([block.block_id for block in due]) if due else ()
        return [
            FullBlock(block.cache_scope, block.block_hash, block.parent_block_hash, payload, block.tenant)
            for block, payload in zip(due, payloads, strict=True)
        ]

    def _load(self) -> EngineLoad:
        return engine_load(self.scheduler, self._meter, self._chunk.tokens)

    def _end_all(self, error: WeirError) -> None:
        """The last words of every live request, once, from whichever thread comes first."""
        lives = self.door.end()
        if lives is None:
            return
        ends = [request_end(live, self._options.clock(), error) for live in lives]
        try:
            self.held_reads.close()
            if ends:
                self._deliver(StepOutput(ended=ends))
        except Exception:
            _log.exception("nobody heard the last words of %d requests", len(ends))


def _everything(_: bytes) -> bool:
    return True


def _drop(_: StepOutput) -> None:
    """Before `start` there is nobody to hear."""
