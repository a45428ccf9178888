"""One request on a worker outside the suite. To an attempt it is an executor's stream and a postprocess stream in one.

    worker.execute(…) ── events ──► the attempt's own callbacks ──► outbox ──► client

So the pipeline, the retries, the outbox and the receipt do not know that nobody here has seen a token.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Protocol

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished, RequestEnd, Submit
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.output_pb2 import FinishReason, TokenBatch, Usage
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished, Receipt
from weir.postprocess.v1.postprocess_pb2 import Open, PostprocessOutputFinished
from weir_chassis.background import Background
from weir_chassis.clock import Clock
from weir_chassis.errors import Internal, WeirError
from weir_chassis.telemetry import get_logger
from weir_router.delivery import Event
from weir_router.faults.breaker import Use
from weir_router.faults.table import Where
from weir_router.providers.errors import Away
from weir_router.providers.external import ExternalRequest, ExternalWorker


class WholeSink(Protocol):
    """One request of a worker that tells text. Its methods must not raise and must not wait."""

    def on_version(self, version: ModelVersion) -> None: ...
    def on_accepted(self) -> None: ...
    def on_text(self, delta: Delta, now: float) -> None: ...
    def on_finished(self, row: ExecutorOutputFinished) -> None: ...
    def on_text_finished(self, row: PostprocessOutputFinished) -> None: ...
    def on_receipt(self, receipt: Receipt) -> None: ...
    def on_ended(self, end: RequestEnd) -> None: ...
    def on_failed(self, error: WeirError) -> None: ...


class ExternalCall:
    """`asked` on `worker`. Begins with `submit`, ends by itself or with `withdraw`."""

    # Its worker is not given the same request again.
    is_open = True

    def __init__(self, worker: ExternalWorker, asked: ExternalRequest, use: Use, background: Background, clock: Clock):
        """`use`: of the worker, as its breaker sees it."""
        self.address = worker.address
        self._worker, self._asked, self._use = worker, asked, use
        self._background, self._clock = background, clock
        self._task: asyncio.Task[None] | None = None
        self._end = RequestEnd()
        self._where = Where.BEFORE_FIRST_TOKEN

    # As an executor's stream.

    def submit(self, submit: Submit, sink: WholeSink) -> None:  # noqa: ARG002  # it has the client's own request
        assert self._task is None, "it is submitted once"
        self._task = self._background.start(self._run(sink), name="external-call")

    def abort_output(self, handle: int, output_index: int) -> None:
        """Who has said that an output is over need not be told."""

    def withdraw(self, handle: int) -> None:  # noqa: ARG002
        """Closes the call, if it lives; its sink hears nothing more."""
        if self._task is not None:
            self._task.cancel()

    # As a postprocess stream: it makes its text itself, and finds its stop strings.

    def open(self, request: Open, sink: object) -> None: ...
    def add_tokens(self, batch: TokenBatch) -> None: ...
    def replay(self, batch: TokenBatch) -> None: ...
    def close(self, handle: int) -> None: ...
    def done(self, handle: int) -> None: ...
    def finish(
        self, handle: int, output_index: int, reason: FinishReason.ValueType, *, ends_with_stop_token: bool
    ) -> None: ...

    async def _run(self, sink: WholeSink) -> None:
        try:
            with self._worker.counted():
                async with aclosing(self._worker.execute(self._asked)) as events:
                    async for event in events:
                        self._pass(event, sink)
            self._use.succeeded()
        except WeirError as error:
            self._worker.note(error)
            self._use.failed(error, Where.CONNECTION if isinstance(error, Away) else self._where)
            sink.on_failed(error)
        except Exception:
            get_logger().exception("external_call_failed", worker=self.address)
            sink.on_failed(Internal(f"the call to {self.address} failed"))
        else:
            sink.on_ended(self._end)
        finally:
            self._use.ended()

    def _pass(self, event: Event, sink: WholeSink) -> None:
        match event:
            case Accepted():
                sink.on_version(event.model_version)
                sink.on_accepted()
            case Delta():
                self._where = Where.AFTER_FIRST_TOKEN
                sink.on_text(event, self._clock.monotonic())
            case OutputFinished():
                sink.on_finished(_executors(event))
                sink.on_text_finished(_postprocessors(event))
            case Usage():
                self._end.usage.CopyFrom(event)
            case Receipt():
                self._note(event)
                sink.on_receipt(event)
            case _:
                pass  # that it went on there is in its receipt; here it has not moved

    def _note(self, receipt: Receipt) -> None:
        """What another router says of its executor's part."""
        end, timings = self._end, receipt.timings
        end.engine_cached_tokens, end.store_cached_tokens = receipt.engine_cached_tokens, receipt.store_cached_tokens
        end.store_cached_tokens_by_tier.update(receipt.store_cached_tokens_by_tier)
        end.preemptions = receipt.preemptions
        for name in ("queue", "prefill", "decode"):
            getattr(end, name).CopyFrom(getattr(timings, name))


def _executors(finished: OutputFinished) -> ExecutorOutputFinished:
    row = ExecutorOutputFinished(output_index=finished.output_index, finish_reason=finished.finish_reason)
    if finished.HasField("stop_token_id"):
        row.stop_token_id = finished.stop_token_id
    return row


def _postprocessors(finished: OutputFinished) -> PostprocessOutputFinished:
    row = PostprocessOutputFinished(output_index=finished.output_index, finish_reason=finished.finish_reason)
    if finished.HasField("stop"):
        row.stop = finished.stop
    return row
