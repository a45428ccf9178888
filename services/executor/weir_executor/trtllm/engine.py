"""`Engine` on `tensorrt_llm.LLM`: its in-flight batching, our queue before it, and one message for all it says at once.

    submit, abort ─▶ (any thread) ─▶ engine loop: our queue ─▶ generate_async, one for each output
                                                              └─ a task for each: results ─▶ Cursor ─▶ pending
                                     once a turn of the loop: pending ─▶ deliver(StepOutput)

The engine's own thread is an event loop, because results are consumed on the loop on which they were asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

from weir_chassis.errors import (
    AlreadyExists,
    Internal,
    InvalidArgument,
    NotFound,
    Overloaded,
    Unsupported,
    WeirError,
    WorkerLost,
)
from weir_executor.adapters.config import AdapterConfig
from weir_executor.adapters.files import read_weights
from weir_executor.engine import (
    AdapterInfo,
    Deliver,
    EngineInfo,
    EngineLoad,
    FinishReason,
    GenerationRequest,
    KvEvent,
    RequestEnd,
    RequestState,
    StepOutput,
    TokenOutput,
    Wants,
)
from weir_executor.request_checks import check_request
from weir_executor.trtllm import stats
from weir_executor.trtllm.config import TrtConfig
from weir_executor.trtllm.kv_events import EventTranslator, private_salt, shared_salt
from weir_executor.trtllm.library import Library
from weir_executor.trtllm.live import LiveOutput, LiveRequest, begin, over_at_once
from weir_executor.trtllm.loop_thread import LoopThread
from weir_executor.trtllm.probe import Capabilities
from weir_executor.trtllm.sampling import check_sampling, sampling_arguments
from weir_executor.trtllm.stats import Iteration
from weir_executor.trtllm.supervisor import Supervisor

_log = logging.getLogger(__name__)
# Between two looks at statistics and events: both are told once a step at most.
_LOOK_SECONDS: Final = 0.01
# An aborted request's last result comes some steps later. What has none by then has left its place for good.
_ABORT_SECONDS: Final = 30.0
_LEAVE_SECONDS, _SHUTDOWN_SECONDS = 5.0, 30.0
# Of one adapter: a rank of 256 on the largest models.
_MAX_ADAPTER_BYTES: Final = 8 << 30
_PRIORITIES: Final = 200.0  # ours are [-100, 100], the engine's [0, 1]


class TrtEngine:
    """See `Engine`. `llm` is an `LLM` that is ready, with `info` as it was told."""

    def __init__(self, llm: Any, library: Library, can: Capabilities, config: TrtConfig, info: EngineInfo) -> None:
        self._llm, self._library, self._can, self._config, self._info = llm, library, can, config, info
        self._end_id = min(info.eos_token_ids)
        self._lock = threading.Lock()  # over what other threads read: the next four
        self._lives: dict[int, LiveRequest] = {}
        self._waiting_count = 0
        self._error: Exception | None = None
        self._closed = False
        # Of the loop thread.
        self._waiting: list[LiveRequest] = []
        self._running: list[LiveRequest] = []
        self._outputs: list[TokenOutput] = []
        self._ended: list[RequestEnd] = []
        self._events: list[KvEvent] = []
        self._flushing = False
        self._deliver: Deliver = lambda _: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._salts = count(1)
        self._reading_events = asyncio.Lock()
        self._steps, self._progress = 0, 0
        self._iteration, self._translator = Iteration(total_blocks=info.num_blocks), EventTranslator(info.block_size)
        self._load = self._make_load()
        self._adapters: dict[str, Any] = {}  # LoRARequest by name
        self._adapter_ids = count(1)
        self._loop = LoopThread("trtllm-engine")
        self._supervisor = Supervisor(llm, can, self.die)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def start(self, deliver: Deliver, wants: Wants | None = None) -> None:  # noqa: ARG002
        """`wants` is never asked: the engine's blocks go to the store by a connector, if they go."""
        self._deliver = deliver
        self._supervisor.start()
        self._loop.run(self._watch(self._look_at_stats))
        if self._config.prefix_cache:
            self._loop.run(self._watch(self._look_at_events))

    def submit(self, request: GenerationRequest) -> None:
        check_request(request, self._info)
        check_sampling(request)
        if request.guide is not None and self._config.guided_backend is None:
            raise Unsupported(f"{request.guide.guide.field}: the engine has no guided_decoding_backend")
        if request.adapter and request.adapter not in self._adapters:
            raise NotFound(request.adapter, f"adapter {request.adapter!r} is not loaded here")
        live = begin(request, self._end_id, time.monotonic())
        with self._lock:
            self._check_open()
            if request.key in self._lives:
                raise AlreadyExists(str(request.key), f"request {request.key} lives")
            if self._waiting_count >= self._config.max_waiting:
                raise Overloaded(f"{self._waiting_count} requests wait, the limit is {self._config.max_waiting}")
            self._lives[request.key] = live
            self._waiting_count += 1
        self._loop.call(self._enter, live)

    def abort(self, key: int, output_index: int | None = None) -> None:
        if self._loop.is_current:  # whoever is being delivered to: what is under way is not said any more
            self._abort(key, output_index)
        else:
            self._loop.call(self._abort, key, output_index)

    def cached_prefix_blocks(self, block_hashes: Sequence[bytes]) -> int:
        translator = self._translator
        return next((i for i, each in enumerate(block_hashes) if each not in translator), len(block_hashes))

    def read_held(self, key: int, first: int, count: int) -> Sequence[bytes] | None:  # noqa: ARG002
        """The engine hands prompts over in a way of its own."""
        return None

    def release_held(self, key: int) -> None:
        pass

    def load_adapter(
        self, name: str, directory: Path, config: AdapterConfig, note: Callable[[int, int], None]
    ) -> AdapterInfo:
        """The engine itself reads the files with the first request that names it; what is wrong with them ends that."""
        if len(self._adapters) >= self._config.max_adapters:
            raise Unsupported(f"adapters: {len(self._adapters)} are loaded, the limit is {self._config.max_adapters}")
        if name in self._adapters:
            raise AlreadyExists(name, f"an adapter {name!r} is loaded")
        weights, fingerprint = read_weights(directory, _MAX_ADAPTER_BYTES, note)
        self._adapters[name] = self._library.LoRARequest(name, next(self._adapter_ids), str(directory))
        return AdapterInfo(name, config.rank, fingerprint, len(weights))

    def unload_adapter(self, name: str) -> None:
        """The engine forgets it when it needs the room: ids are never used twice."""
        del self._adapters[name]

    def load(self) -> EngineLoad:
        return self._load

    def requests(self) -> Sequence[RequestState]:
        now = time.monotonic()
        with self._lock:
            lives = list(self._lives.values())
        return [live.state(now, live.begun_at is None, self._info.block_size) for live in lives]

    def check_health(self) -> None:
        if self._error is not None:
            raise self._error

    def die(self, error: Exception) -> None:
        """The engine is of no more use: everybody is told, and nobody new is let in. Any thread, any time."""
        with self._lock:
            if self._error is not None or self._closed:
                return
            self._error = error
        _log.error("the engine died: %s: %s", type(error).__name__, error)
        self._loop.call(self._end_all, WorkerLost(f"the engine died: {type(error).__name__}"))

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._supervisor.stop()
        with suppress(TimeoutError):
            self._loop.run(self._wind_up()).result(2 * _LEAVE_SECONDS)
        self._shut_down()
        if not self._loop.close(_LEAVE_SECONDS):
            _log.error("the engine's loop does not end; it is left behind")

    # ── on the loop ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _enter(self, live: LiveRequest) -> None:
        stops = live.request.stop_token_ids
        if not live.request.ignore_eos:
            stops |= self._info.eos_token_ids
        self._outputs += over_at_once(live, stops)
        index = next((i for i, other in enumerate(self._waiting) if _rank(other) > _rank(live)), len(self._waiting))
        self._waiting.insert(index, live)
        self._pump()
        self._soon()

    def _pump(self) -> None:
        """Gives the engine what it has room for, in our order."""
        while self._error is None and (live := self._next_waiting()) is not None:
            running = sum(each.num_in_engine for each in self._running)
            if running and running + live.num_wanted > self._config.max_num_seqs:
                return
            self._waiting.remove(live)
            with self._lock:
                self._waiting_count -= 1
            self._running.append(live)
            self._begin(live)

    def _next_waiting(self) -> LiveRequest | None:
        """The first in line for whom nobody computes a block that it could share: that is found once it is there."""
        return next((live for live in self._waiting if not self._stands_back(live)), None)

    def _stands_back(self, live: LiveRequest) -> bool:
        hashes = live.request.block_hashes
        known = self.cached_prefix_blocks(hashes)
        if known >= len(hashes):
            return False
        return any(
            other.first_token_at is None
            and len(other.request.block_hashes) > known
            and other.request.block_hashes[known] == hashes[known]
            for other in self._running
        )

    def _begin(self, live: LiveRequest) -> None:
        live.begun_at = time.monotonic()
        try:
            for output in live.outputs:
                if not output.over:
                    self._begin_output(live, output)
        except Exception as error:  # what the engine says of a request before it has it
            live.error = _refusal(error, self._library)
            self._withdraw(live, None)
        self._conclude(live)

    def _begin_output(self, live: LiveRequest, output: LiveOutput) -> None:
        request = live.request
        resumed = request.resumed.get(output.index, ())
        arguments: dict[str, Any] = {
            "inputs": [*request.token_ids, *resumed],
            "sampling_params": self._library.SamplingParams(
                **sampling_arguments(request, output.index, self._info, self._can, self._library)
            ),
            "lora_request": self._adapters.get(request.adapter),
            "streaming": True,
            "cache_salt": self._salt(request),
        }
        if self._can.priority:
            arguments["priority"] = 0.5 + request.priority / _PRIORITIES
        output.result = self._llm.generate_async(**arguments)
        task = asyncio.get_running_loop().create_task(self._follow(live, output), name=f"follow-{live.key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _salt(self, request: GenerationRequest) -> str:
        """Prompts find one another's blocks where they name the same scope, and nobody's where they name none."""
        shares = bool(request.block_hashes) or (
            len(request.token_ids) < self._info.block_size and bool(request.cache_scope)
        )
        return shared_salt(request.cache_scope) if shares and request.cache_scope else private_salt(next(self._salts))

    async def _follow(self, live: LiveRequest, output: LiveOutput) -> None:
        """One of the engine's requests, to its last result."""
        result = output.result
        try:
            async for newest in result:
                if output.result is None:
                    return  # it was given up
                finished = newest.finished
                self._take(live, output, newest)
                if finished:
                    break
        except asyncio.CancelledError:
            raise
        except self._library.RequestError as error:
            live.error = live.error or Internal(f"the engine failed the request: {_first_line(error)}")
            self._withdraw(live, output)
        except Exception as error:
            self.die(error)
            return
        output.result = None
        if not output.over:
            output.over = True
            live.error = live.error or Internal("the engine ended an output without saying why")
        self._conclude(live)
        self._pump()

    def _take(self, live: LiveRequest, output: LiveOutput, newest: Any) -> None:
        """The engine will change the same object with the next step."""
        if live.cached_tokens is None:
            live.cached_tokens = int(newest.cached_tokens or 0)
        news = output.cursor.advance(newest.outputs[0])
        if news.token_ids and live.first_token_at is None:
            live.first_token_at = time.monotonic()
            asyncio.get_running_loop().call_soon(self._pump)  # for whoever stood back for its blocks
        if news.finish_reason is FinishReason.CANCELLED:
            output.over = True
            return
        if (words := output.take(live.key, news)) is not None:
            self._outputs.append(words)
            self._progress += len(words.token_ids) + (words.finish_reason is not None)
            self._soon()

    def _abort(self, key: int, output_index: int | None) -> None:
        live = self._lives.get(key)
        if live is None:
            return
        if live in self._waiting:
            live.stop(output_index)
            if not live.num_wanted:
                self._waiting.remove(live)
                with self._lock:
                    self._waiting_count -= 1
        else:
            for output in live.stop(output_index):
                self._abort_output(live, output)
        self._conclude(live)

    def _withdraw(self, live: LiveRequest, said: LiveOutput | None) -> None:
        """It has failed: none of its outputs goes on. `said`: the one that has had its last word."""
        for output in live.stop(None):
            if output is said:
                output.result = None
            else:
                self._abort_output(live, output)

    def _abort_output(self, live: LiveRequest, output: LiveOutput) -> None:
        output.result.abort()
        asyncio.get_running_loop().call_later(_ABORT_SECONDS, self._give_up, live, output)

    def _give_up(self, live: LiveRequest, output: LiveOutput) -> None:
        if output.result is not None:
            _log.error("an aborted request has not ended after %g s; its place is given away", _ABORT_SECONDS)
            output.result = None
            self._conclude(live)
            self._pump()

    def _conclude(self, live: LiveRequest) -> None:
        """Its last word, once there is nothing more to come of it."""
        if not live.done or self._lives.get(live.key) is not live:
            return
        with self._lock:
            del self._lives[live.key]
        if live in self._running:
            self._running.remove(live)
        self._ended.append(live.end(time.monotonic()))
        self._progress += 1
        self._soon()

    async def _wind_up(self) -> None:
        """Everybody is told, the engine is asked to end what it has, and its last results are waited for, not long."""
        self._clear_queue()
        for live in list(self._lives.values()):
            live.error = live.error or WorkerLost("the engine was closed")
            self._withdraw(live, None)
            self._conclude(live)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        self._end_all(WorkerLost("the engine was closed"))

    def _end_all(self, error: WeirError) -> None:
        """At once, whatever the engine may still say."""
        self._clear_queue()
        for task in list(self._tasks):
            task.cancel()
        for live in list(self._lives.values()):
            live.error = live.error or error
            for output in live.outputs:
                output.over, output.result = True, None
            self._conclude(live)
        self._flush()

    def _clear_queue(self) -> None:
        self._waiting.clear()
        with self._lock:
            self._waiting_count = 0

    def _soon(self) -> None:
        """What was said in one turn of the loop goes out as one message."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._begin_flush)

    def _begin_flush(self) -> None:
        """Who hears of a request's end knows what blocks it has left: the engine is asked for them first."""
        if not (self._ended and self._config.prefix_cache):
            self._flush()
            return
        task = asyncio.get_running_loop().create_task(self._flush_with_events(), name="flush")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flush_with_events(self) -> None:
        try:
            await self._look_at_events()
        except Exception:
            _log.exception("the engine's events cannot be read")
        self._flush()

    def _flush(self) -> None:
        """Delivers, and only then shows the load: who sees a request gone from it has heard its end."""
        self._flushing = False
        step = StepOutput(self._outputs, self._ended, (), self._events)
        self._outputs, self._ended, self._events = [], [], []
        if step.outputs or step.ended or step.kv_events:
            self._steps += 1
            self._deliver(step)
        self._load = self._make_load()

    def _make_load(self) -> EngineLoad:
        return stats.load(
            self._iteration,
            self._running,
            self._waiting,
            total_blocks=self._info.num_blocks,
            cached_blocks=len(self._translator),
            progress=self._progress,
            steps=self._steps,
            chunk_tokens=self._config.max_batched_tokens,
            prefill_token_seconds=None,
        )

    # ── what the engine tells by itself ───────────────────────────────────────────────────────────────────────────────

    async def _watch(self, look: Callable[[], Awaitable[None]]) -> None:
        """For as long as the engine lives; a look that fails is another version's, and not the end."""
        while self._error is None:
            try:
                await look()
            except asyncio.CancelledError:
                raise
            except Exception:
                _log.exception("the engine's %s cannot be read; requests go on without", look.__name__)
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look_at_stats(self) -> None:
        before = self._iteration
        async for told in self._llm.get_stats_async(timeout=0.0):
            self._iteration = stats.add(self._iteration, told)
        if self._iteration is not before:
            self._soon()

    async def _look_at_events(self) -> None:
        async with self._reading_events:  # each is told once, and their order counts
            async for event in self._llm.get_kv_cache_events_async(timeout=0.0):
                self._events += self._translator.translate(event)
        if self._events:
            self._soon()

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _shut_down(self) -> None:
        """Bounded; an engine that has died is not asked, and takes the process with it when it keeps it."""
        if self._error is None:
            ending = threading.Thread(target=self._shut_down_llm, name="shut-down-engine", daemon=True)
            ending.start()
            ending.join(_SHUTDOWN_SECONDS)
            if not ending.is_alive():
                return
        _log.error("the engine's processes do not end by themselves; ours will not wait for them")
        timer = threading.Timer(_SHUTDOWN_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def _shut_down_llm(self) -> None:
        with suppress(Exception):
            self._llm.shutdown()

    def _check_open(self) -> None:
        """With the lock held."""
        if self._closed or self._error is not None:
            raise WorkerLost("the engine has stopped")


def _rank(live: LiveRequest) -> tuple[int, int]:
    return -live.request.priority, live.request.place


def _refusal(error: Exception, library: Library) -> WeirError:
    """What a synchronous error of `generate_async` means to the caller."""
    match error:
        case WeirError():
            return error
        case NotImplementedError():
            return Unsupported(_first_line(error))
        case ValueError() | TypeError() | library.RequestError():
            return InvalidArgument("request", _first_line(error))
        case RuntimeError():
            return WorkerLost(_first_line(error))
    return Internal(_first_line(error))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
