"""From the engine's thread to the streams: one step in, at most one wake-up per stream out.

    engine thread          │  event loop
    deliver(step) ──▶ queue ──▶ route ──▶ stream A   (rows of its handles)
      └─▶ offer(blocks)    │          ├─▶ stream B
                           │          └─▶ the log of KV events

The engine never waits: `deliver` appends and rings. When the loop is behind, several steps are routed at once and each
stream hears them as one message; that queue is bounded by what the running sequences can still generate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock

from weir_chassis.drain_rate import DrainRate
from weir_chassis.rate import Rate
from weir_executor.deadlines import Deadlines
from weir_executor.handoff.table import HandoffTable
from weir_executor.live_requests import Listener, LiveRequest, LiveRequests, drop_prefix
from weir_executor.metrics import ExecutorMetrics
from weir_executor.step_output import FullBlock, KvEvent, RequestEnd, StepOutput


class StepFanout:
    def __init__(
        self,
        requests: LiveRequests,
        deadlines: Deadlines,
        drain_rate: DrainRate,
        token_rate: Rate,
        metrics: ExecutorMetrics,
        *,
        handoffs: HandoffTable,
        record: Callable[[Sequence[KvEvent]], None],
        offer: Callable[[Sequence[FullBlock]], None] | None,
    ) -> None:
        """Needs a running event loop. `record` is called on it; `offer` on the engine's thread, and must not block."""
        self._requests, self._deadlines, self._metrics = requests, deadlines, metrics
        self._drain_rate, self._token_rate = drain_rate, token_rate
        self._handoffs, self._record, self._offer = handoffs, record, offer
        self._loop = asyncio.get_running_loop()
        self._lock = Lock()  # guards the two below
        self._steps: list[StepOutput] = []
        self._closed = False
        self._error: Exception | None = None

    def deliver(self, step: StepOutput) -> None:
        """The engine's `Deliver`. Any thread."""
        if step.full_blocks:
            # Before anything queues, because these are large and their queue has a bound in bytes of its own.
            if self._offer is not None:
                self._offer(step.full_blocks)
            step = replace(step, full_blocks=())
        with self._lock:
            if self._closed:
                return
            self._steps.append(step)
            if len(self._steps) == 1:
                self._loop.call_soon_threadsafe(self._route_all)

    def check_health(self) -> None:
        """Raises the error that routing met: a bug, by which some request may never hear its end."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Routes what has been delivered; what comes later is dropped. For after the engine's own `close`."""
        with self._lock:
            self._closed = True
        self._route_all()

    def _route_all(self) -> None:
        with self._lock:
            steps, self._steps = self._steps, []
        touched: set[Listener] = set()
        try:
            for step in steps:
                self._route(step, touched)
        except Exception as error:  # the event loop would log it and go on, and what was not routed would be waited for
            self._error = error
        for listener in touched:
            listener.flush()

    def _route(self, step: StepOutput, touched: set[Listener]) -> None:
        tokens = 0
        for output in step.outputs:
            live = self._requests.get(output.key)
            if live is not None and not live.told:
                live.listener.hear_tokens(live, output)
                touched.add(live.listener)
                drop_prefix(live)
            tokens += len(output.token_ids)
        for end in step.ended:
            self._end(end, touched)
        if step.ended:
            self._drain_rate.ended(len(step.ended))
        if step.kv_events:
            self._record(step.kv_events)
        if tokens:
            self._token_rate.add(tokens)
        self._metrics.note_step(tokens)

    def _end(self, end: RequestEnd, touched: set[Listener]) -> None:
        self._deadlines.remove(end.key)
        live = self._requests.remove(end.key)
        assert live is not None, f"the engine ended request {end.key} twice or without a submit"
        self._metrics.note_end(end)
        if end.held_blocks:
            self._leave(live, end.held_blocks, end.handed_state)
        if live.told:
            return
        if end.error is None:
            live.listener.hear_end(live, end)
        else:
            live.listener.hear_failure(live, end.error)
        touched.add(live.listener)

    def _leave(self, live: LiveRequest, held_blocks: int, state: bytes) -> None:
        """Blocks for another executor to take, unless nobody wants that any more."""
        handoff = self._handoffs.open(live, held_blocks, state)
        if live.told or live.aborted:  # after the engine had ended it, and before that was heard here
            handoff.lease.release()
        else:
            live.handoff = handoff
