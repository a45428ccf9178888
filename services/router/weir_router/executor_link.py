"""One executor: what it serves, what it owes, and the one stream to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from weir.executor.v1.executor_pb2 import DESCRIPTOR, GetLoadRequest, GetModelInfoRequest
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir_chassis.errors import NoWorker, WorkerLost
from weir_router.executor_stream import ExecutorStream
from weir_router.link import Link, LinkContext
from weir_router.model_version import Version
from weir_router.outstanding import Outstanding
from weir_router.snapshot import ExecutorModel, ExecutorView, WorkerState

if TYPE_CHECKING:
    from weir.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub


class ExecutorLink(Link):
    kind = "executor"
    service = DESCRIPTOR.services_by_name["ExecutorService"].full_name

    def __init__(self, address: str, context: LinkContext):
        super().__init__(address, context)
        self._stub: ExecutorServiceAsyncStub = ExecutorServiceStub(self.channel)
        self.outstanding = Outstanding()
        self._model: ExecutorModel | None = None
        self._stream: ExecutorStream | None = None
        self._last_step: tuple[int, int] | None = None

    @property
    def stream(self) -> ExecutorStream:
        """Raises NoWorker when it is not connected."""
        if self._stream is None:
            raise NoWorker(f"executor {self.address} is not connected")
        return self._stream

    def view(self) -> ExecutorView:
        count, now = self.outstanding, self.context.clock.monotonic()
        age = None if count.reported_at is None else now - count.reported_at
        return ExecutorView(
            self.address, self._current_state(), self._model, count.routed_tokens, count.foreign_tokens, age
        )

    def _current_state(self) -> WorkerState:
        # The stream's end is known a moment before the rest of the link has been taken down.
        return self.state if self._stream is not None else WorkerState.DOWN

    async def probe(self) -> None:
        timeout = self.context.settings.probe_timeout_seconds
        info = await self._stub.GetModelInfo(GetModelInfoRequest(), timeout=timeout)
        version = Version.of(info.model_version)
        self._model = ExecutorModel(version, info.vocab_size, info.max_model_len, info.block_size)

    async def hold(self) -> None:
        self._stream = ExecutorStream(self.address, self.context.clock)
        try:
            await self._stream.run(self._stub.Generate())
        finally:
            self._stream = None
            self.outstanding.forget()

    async def poll(self) -> None:
        """A worker that owes answers and neither sends nor steps is lost, however well its health says it is."""
        timeout = self.context.settings.probe_timeout_seconds
        try:
            load = await self._stub.GetLoad(GetLoadRequest(), timeout=timeout)
        except grpc.RpcError:
            pass  # one unanswered question makes the count older, not the worker dead
        else:
            self.outstanding.report(load.outstanding_tokens, self.context.clock.monotonic())
            self._note_step((load.epoch, load.step))
        self._check_progress()

    def _note_step(self, step: tuple[int, int]) -> None:
        if self._stream is not None and step != self._last_step:
            self._stream.last_progress = self.context.clock.monotonic()
        self._last_step = step

    def _check_progress(self) -> None:
        stream, limit = self._stream, self.context.settings.no_progress_seconds
        if stream is None or not stream.num_live:
            return
        if self.context.clock.monotonic() - stream.last_progress > limit:
            stream.cause = f"it has made no progress for {limit:g} s"
            raise WorkerLost(stream.cause)
