"""One postprocess replica and the one stream to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2, health_pb2_grpc

from weir.postprocess.v1.postprocess_pb2 import DESCRIPTOR
from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceStub
from weir_chassis.errors import Draining
from weir_router.fleet.link import LinkContext
from weir_router.fleet.stream_link import StreamLink
from weir_router.fleet.views import PostprocessorView
from weir_router.streams.postprocess_stream import PostprocessStream

if TYPE_CHECKING:
    from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceAsyncStub


class PostprocessLink(StreamLink[PostprocessStream]):
    kind = "postprocess"
    service = DESCRIPTOR.services_by_name["PostprocessService"].full_name

    def __init__(self, address: str, context: LinkContext):
        super().__init__(address, context)
        self._stub: PostprocessServiceAsyncStub = PostprocessServiceStub(self.channel)

    def view(self) -> PostprocessorView:
        live = self._stream.num_live if self._stream else 0
        return PostprocessorView(self.address, self.current_state(), live, self.traits)

    def recounted(self, view: PostprocessorView) -> PostprocessorView:
        live = self._stream.num_live if self._stream else 0
        if live == view.live_requests:
            return view
        # Field by field, for `dataclasses.replace` takes three times as long.
        return PostprocessorView(view.address, view.state, live, view.traits, view.ejected)

    async def probe(self) -> None:
        """It has nothing to tell about itself but that it serves. One that drains would refuse the stream."""
        if await self._health() != health_pb2.HealthCheckResponse.SERVING:
            raise Draining("it answers and takes nothing new")

    async def hold(self) -> None:
        stream = PostprocessStream(self.address, self.context.clock, self.context.changes, self.uses())
        with self.connected(stream):
            await stream.run(self._stub.Postprocess())

    async def poll(self) -> None:
        self.check_silence()
        await self._health()

    async def _health(self) -> int:
        check = health_pb2.HealthCheckRequest(service=self.service)
        timeout = self.context.settings.probe_timeout_seconds
        answer = await health_pb2_grpc.HealthStub(self.channel).Check(check, timeout=timeout)
        return int(answer.status)
