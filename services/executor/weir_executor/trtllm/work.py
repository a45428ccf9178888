"""Our queue in front of the engine, and every output that it draws. Used on the engine's loop only.

    enter ─▶ queue ─▶ generate_async, one for each output ─▶ a task for each: results ─▶ Cursor ─▶ Outlet
                 highest priority first, then by place, then as they came; no more than the engine runs at once

An output that is aborted says nothing more; it keeps its place until the engine's last word on it, or a time limit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Final

from weir_chassis.errors import Internal, WeirError, WorkerLost
from weir_executor.engine import EngineInfo, FinishReason, GenerationRequest
from weir_executor.trtllm.config import TrtConfig
from weir_executor.trtllm.kv_events import private_salt, shared_salt
from weir_executor.trtllm.library import Library
from weir_executor.trtllm.live import LiveOutput, LiveRequest, over_at_once
from weir_executor.trtllm.lives import Lives
from weir_executor.trtllm.outlet import Outlet
from weir_executor.trtllm.probe import Capabilities
from weir_executor.trtllm.refusals import first_line, refusal
from weir_executor.trtllm.sampling import sampling_arguments

_log = logging.getLogger(__name__)
# An aborted request's last result comes some steps later. What has none by then has left its place for good.
_ABORT_SECONDS: Final = 30.0
_LEAVE_SECONDS: Final = 5.0
_PRIORITIES: Final = 200.0  # ours are [-100, 100], the engine's [0, 1]


class Work:
    """`die` is called with an error that is the engine's and nobody's in particular."""

    def __init__(
        self,
        llm: Any,
        library: Library,
        can: Capabilities,
        config: TrtConfig,
        info: EngineInfo,
        *,
        lives: Lives,
        outlet: Outlet,
        count_cached: Callable[[Sequence[bytes]], int],
        die: Callable[[Exception], None],
    ) -> None:
        self._llm, self._library, self._can, self._config, self._info = llm, library, can, config, info
        self._lives, self._outlet, self._count_cached, self._die = lives, outlet, count_cached, die
        self.waiting: list[LiveRequest] = []
        self.running: list[LiveRequest] = []
        self.adapters: dict[str, Any] = {}  # LoRARequest by name
        self._tasks: set[asyncio.Task[None]] = set()
        self._salts = count(1)

    def enter(self, live: LiveRequest) -> None:
        stops = live.request.stop_token_ids
        if not live.request.ignore_eos:
            stops |= self._info.eos_token_ids
        for words in over_at_once(live, stops):
            self._outlet.output(words)
        place = next((i for i, other in enumerate(self.waiting) if _rank(other) > _rank(live)), len(self.waiting))
        self.waiting.insert(place, live)
        self._pump()
        self._outlet.soon()

    def abort(self, key: int, output_index: int | None) -> None:
        live = self._lives.find(key)
        if live is None:
            return
        for output in live.stop(output_index):
            self._abort_output(live, output)
        if live in self.waiting and not live.num_wanted:
            self.waiting.remove(live)
        self._conclude(live)

    async def wind_up(self) -> None:
        """Everybody is told, the engine is asked to end what it has, and its last results are waited for, not long."""
        self.waiting.clear()
        for live in self._lives.all():
            live.error = live.error or WorkerLost("the engine was closed")
            self._withdraw(live, None)
            self._conclude(live)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        self.end_all(WorkerLost("the engine was closed"))

    def end_all(self, error: WeirError) -> None:
        """At once, whatever the engine may still say."""
        self.waiting.clear()
        for task in list(self._tasks):
            task.cancel()
        for live in self._lives.all():
            live.error = live.error or error
            for output in live.outputs:
                output.over, output.result = True, None
            self._conclude(live)
        self._outlet.flush()

    # ── from the queue to the engine ──────────────────────────────────────────────────────────────────────────────────

    def _pump(self) -> None:
        """Gives the engine what it has room for, in our order."""
        while self._lives.error is None and (live := self._next_waiting()) is not None:
            running = sum(each.num_in_engine for each in self.running)
            if running and running + live.num_wanted > self._config.max_num_seqs:
                return
            self.waiting.remove(live)
            self.running.append(live)
            self._begin(live)

    def _next_waiting(self) -> LiveRequest | None:
        """The first in line for whom nobody computes a block that it could share: that is found once it is there."""
        return next((live for live in self.waiting if not self._stands_back(live)), None)

    def _stands_back(self, live: LiveRequest) -> bool:
        hashes = live.request.block_hashes
        known = self._count_cached(hashes)
        if known >= len(hashes):
            return False
        return any(
            other.first_token_at is None
            and len(other.request.block_hashes) > known
            and other.request.block_hashes[known] == hashes[known]
            for other in self.running
        )

    def _begin(self, live: LiveRequest) -> None:
        self._lives.begin(live, time.monotonic())
        try:
            for output in live.outputs:
                if not output.over:
                    self._begin_output(live, output)
        except Exception as error:  # what the engine says of a request before it has it
            live.error = refusal(error, self._library)
            self._withdraw(live, None)
        self._conclude(live)

    def _begin_output(self, live: LiveRequest, output: LiveOutput) -> None:
        request = live.request
        sampling = sampling_arguments(request, output.index, self._info, self._can, self._library)
        arguments: dict[str, Any] = {
            "inputs": [*request.token_ids, *request.resumed.get(output.index, ())],
            "sampling_params": self._library.SamplingParams(**sampling),
            "lora_request": self.adapters.get(request.adapter),
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
        shares = bool(request.block_hashes) or len(request.token_ids) < self._info.block_size
        return shared_salt(request.cache_scope) if shares and request.cache_scope else private_salt(next(self._salts))

    # ── from the engine to the caller ─────────────────────────────────────────────────────────────────────────────────

    async def _follow(self, live: LiveRequest, output: LiveOutput) -> None:
        """One of the engine's requests, to its last result."""
        try:
            async for newest in output.result:
                if output.result is None:
                    return  # its place was given away
                finished = newest.finished
                self._take(live, output, newest)
                if finished:
                    break
        except self._library.RequestError as error:
            live.error = live.error or Internal(f"the engine failed the request: {first_line(error)}")
            self._withdraw(live, output)
        except Exception as error:
            self._die(error)
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
        elif (words := output.take(live.key, news)) is not None:
            self._outlet.output(words)

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
        if live.done and self._lives.remove(live):
            if live in self.running:
                self.running.remove(live)
            self._outlet.end(live.end(time.monotonic()))


def _rank(live: LiveRequest) -> tuple[int, int]:
    return -live.request.priority, live.request.place
