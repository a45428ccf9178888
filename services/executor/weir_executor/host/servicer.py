"""The ModelHostService: call, translate back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from weir.executor.v1 import host_pb2 as pb
from weir.executor.v1.host_pb2_grpc import ModelHostServiceServicer
from weir_chassis.errors import InvalidArgument
from weir_executor.host.hosted_models import MAX_NAME_BYTES, Hosted, State
from weir_executor.host.model_host import ModelHost

_STATES: Final = {
    State.LOADING: pb.HOSTED_MODEL_STATE_LOADING,
    State.SERVING: pb.HOSTED_MODEL_STATE_SERVING,
    State.UNLOADING: pb.HOSTED_MODEL_STATE_UNLOADING,
    State.FAILED: pb.HOSTED_MODEL_STATE_FAILED,
}
# Between two messages of an unload: so that a caller sees that somebody is there.
_TELL_SECONDS = 1.0


class ModelHostServicer(ModelHostServiceServicer):
    def __init__(self, host: ModelHost, advertised_host: str) -> None:
        """`advertised_host`: by which others reach this machine; empty: as executors are reached here."""
        self._host, self._advertised_host = host, advertised_host

    async def LoadModel(self, request: pb.LoadModelRequest, _: Any) -> AsyncIterator[pb.LoadModelResponse]:
        if len(request.revision.encode()) > MAX_NAME_BYTES:
            raise InvalidArgument("revision", f"{len(request.revision.encode())} bytes, the limit is {MAX_NAME_BYTES}")
        async with aclosing(self._host.load(request.model, request.directory, request.revision)) as messages:
            async for message in messages:
                if isinstance(message, Hosted):
                    yield pb.LoadModelResponse(model=self._hosted(message))
                else:
                    yield pb.LoadModelResponse(loaded_bytes=message.done, total_bytes=message.total)

    async def UnloadModel(self, request: pb.UnloadModelRequest, _: Any) -> AsyncIterator[pb.UnloadModelResponse]:
        unloading = asyncio.ensure_future(self._host.unload(request.model))
        try:
            while not unloading.done():
                await asyncio.wait({unloading}, timeout=_TELL_SECONDS)
                if not unloading.done():
                    yield pb.UnloadModelResponse(draining=True)
            unloading.result()
            yield pb.UnloadModelResponse()
        finally:
            unloading.cancel()  # its process ends all the same

    async def ListHostedModels(self, _: pb.ListHostedModelsRequest, __: Any) -> pb.ListHostedModelsResponse:
        models = self._host.models
        return pb.ListHostedModelsResponse(models=map(self._hosted, models), max_models=models.max_models)

    def _hosted(self, hosted: Hosted) -> pb.HostedModel:
        host, _, port = hosted.address.rpartition(":")
        message = pb.HostedModel(
            directory=hosted.directory,
            address=f"{self._advertised_host or host}:{port}",
            state=_STATES[hosted.state],
            problem=hosted.problem,
            restarts=hosted.restarts,
            model_version=hosted.version,
        )
        message.model_version.model = hosted.model
        return message
