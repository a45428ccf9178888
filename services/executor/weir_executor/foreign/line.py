"""Our queue before an engine whose own is not ours, and every output that it draws. Used on the backend's loop only.

    enter ─▶ queue ─▶ begin_output, one for each output ─▶ … ─▶ Outlet
                 highest priority first, then by place, then as they came; no more than the engine runs at once

An output that is aborted says nothing more; it keeps its place until the engine's last word on it, or a time limit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Final

from weir_chassis.errors import Internal, WeirError, WorkerLost
from weir_executor.foreign.live import NOTHING_LEFT, Left, LiveOutput, LiveRequest, News, over_at_once
from weir_executor.foreign.lives import Lives
from weir_executor.foreign.outlet import Outlet
from weir_executor.step_output import FinishReason

_log = logging.getLogger(__name__)
# An aborted request's last result comes some steps later. What has none by then has left its place for good.
_ABORT_SECONDS: Final = 30.0
_LEAVE_SECONDS: Final = 5.0


class Line(ABC):
    """A backend says how an output is begun and how its end is asked for, and calls `_take` and `_close` as it goes on.

    `eos_token_ids`: what ends an output besides its own stop tokens. `max_num_seqs`: outputs in the engine at once.
    """

    def __init__(
        self,
        lives: Lives,
        outlet: Outlet,
        *,
        eos_token_ids: frozenset[int],
        max_num_seqs: int,
        count_cached: Callable[[Sequence[bytes]], int],
    ) -> None:
        self._lives, self._outlet, self._count_cached = lives, outlet, count_cached
        self._eos_token_ids, self._max_num_seqs = eos_token_ids, max_num_seqs
        self.waiting: list[LiveRequest] = []
        self.running: list[LiveRequest] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def _begin_output(self, live: LiveRequest, output: LiveOutput) -> None:
        """Give it to the engine: `output.result` is set, and a task of `_tasks` follows it. May raise."""

    @abstractmethod
    def _ask_abort(self, live: LiveRequest, output: LiveOutput) -> None:
        """Ask the engine to end it. Does not wait."""

    @abstractmethod
    def _refusal(self, error: Exception) -> WeirError:
        """What it means that `_begin_output` raised this."""

    # What a backend has beyond that it says here.

    def _num_strays(self) -> int:
        """Outputs that the engine still has and that belong to no request any more."""
        return 0

    def _abort_seconds(self, output: LiveOutput) -> float:  # noqa: ARG002
        """Until the place of an output that is to be aborted is given away."""
        return _ABORT_SECONDS

    def _leave(self, live: LiveRequest) -> Left:  # noqa: ARG002
        """What an ended request leaves to another engine. Whatever else it holds is given back."""
        return NOTHING_LEFT

    def enter(self, live: LiveRequest) -> None:
        stops = live.request.stop_token_ids
        if not live.request.ignore_eos:
            stops |= self._eos_token_ids
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
            running = sum(each.num_in_engine for each in self.running) + self._num_strays()
            if running and running + live.num_wanted > self._max_num_seqs:
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
        if known >= len(hashes) or live.handed:
            return False
        return any(
            other.first_token_at is None
            and len(other.request.block_hashes) > known
            and other.request.block_hashes[known] == hashes[known]
            for other in self.running
        )

    def _begin(self, live: LiveRequest) -> None:
        self._lives.begin(live, time.monotonic())
        self._begin_outputs(live)

    def _begin_outputs(self, live: LiveRequest) -> None:
        """Those that are wanted and that the engine has not had yet."""
        try:
            for output in live.outputs:
                if not output.over and output.result is None:
                    self._begin_output(live, output)
        except Exception as error:  # what the engine says of a request before it has it
            live.error = self._refusal(error)
            self._withdraw(live, None)
        self._conclude(live)

    # ── from the engine to the caller ─────────────────────────────────────────────────────────────────────────────────

    def _follow_by(self, work: Coroutine[None, None, None], live: LiveRequest) -> None:
        """The task that reads what the engine says of an output."""
        task = asyncio.get_running_loop().create_task(work, name=f"follow-{live.key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take(self, live: LiveRequest, output: LiveOutput, news: News) -> None:
        if news.token_ids and live.first_token_at is None:
            live.first_token_at = time.monotonic()
            asyncio.get_running_loop().call_soon(self._pump)  # for whoever stood back for its blocks
        if news.finish_reason is FinishReason.CANCELLED:
            output.over = True
        elif (words := output.take(live.key, news)) is not None:
            self._outlet.output(words)

    def _close(self, live: LiveRequest, output: LiveOutput) -> None:
        """The engine has said its last word on this output."""
        output.result = None
        if not output.over:
            output.over = True
            live.error = live.error or Internal("the engine ended an output without saying why")
        self._conclude(live)
        self._pump()

    def _withdraw(self, live: LiveRequest, said: LiveOutput | None) -> None:
        """It has failed: none of its outputs goes on. `said`: the one that has had its last word."""
        for output in live.stop(None):
            if output is said:
                output.result = None
            else:
                self._abort_output(live, output)

    def _abort_output(self, live: LiveRequest, output: LiveOutput) -> None:
        self._ask_abort(live, output)
        asyncio.get_running_loop().call_later(self._abort_seconds(output), self._give_up, live, output)

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
            self._outlet.end(live.end(time.monotonic(), self._leave(live)))


def _rank(live: LiveRequest) -> tuple[int, int]:
    return -live.request.priority, live.request.place
