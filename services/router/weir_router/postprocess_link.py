"""One postprocess replica and the one stream to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2, health_pb2_grpc

from weir.postprocess.v1.postprocess_pb2 import DESCRIPTOR
from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceStub
from weir_chassis.errors import NoWorker, WorkerLost
from weir_router.link import Link, LinkContext
from weir_router.postprocess_stream import PostprocessStream
from weir_router.snapshot import PostprocessorView, WorkerState

if TYPE_CHECKING:
    from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceAsyncStub


class PostprocessLink(Link):
    kind = "postprocess"
    service = DESCRIPTOR.services_by_name["PostprocessService"].full_name

    def __init__(self, address: str, context: LinkContext):
        super().__init__(address, context)
        self._stub: PostprocessServiceAsyncStub = PostprocessServiceStub(self.channel)
        self._stream: PostprocessStream | None = None

    @property
    def stream(self) -> PostprocessStream:
        """Raises NoWorker when it is not connected."""
        if self._stream is None:
            raise NoWorker(f"postprocess {self.address} is not connected")
        return self._stream

    def view(self) -> PostprocessorView:
        return PostprocessorView(self.address, self._current_state(), self._stream.num_live if self._stream else 0)

    def _current_state(self) -> WorkerState:
        # The stream's end is known a moment before the rest of the link has been taken down.
        return self.state if self._stream is not None else WorkerState.DOWN

    async def probe(self) -> None:
        """It has nothing to tell about itself but that it answers."""
        check = health_pb2.HealthCheckRequest(service=self.service)
        timeout = self.context.settings.probe_timeout_seconds
        await health_pb2_grpc.HealthStub(self.channel).Check(check, timeout=timeout)

    async def hold(self) -> None:
        self._stream = PostprocessStream(self.address, self.context.clock)
        try:
            await self._stream.run(self._stub.Postprocess())
        finally:
            self._stream = None

    async def poll(self) -> None:
        """A replica that owes an answer and is silent is lost, however well its health says it is."""
        stream, limit = self._stream, self.context.settings.no_progress_seconds
        if stream is not None and stream.silent_seconds(self.context.clock.monotonic()) > limit:
            stream.cause = f"it has not answered for {limit:g} s"
            raise WorkerLost(stream.cause)
