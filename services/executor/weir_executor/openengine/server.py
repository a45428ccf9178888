"""The calls to the server: its channel, its deadlines, and nothing else. Used on one event loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from weir.openengine.v1 import openengine_pb2 as pb
from weir.openengine.v1.openengine_pb2_grpc import ControlStub, InferenceStub
from weir_chassis.channel import open_channel
from weir_chassis.limits import client_options
from weir_executor.openengine.capabilities import (
    Capabilities,
    WrongServerError,
    check_model,
    check_server,
    read_capabilities,
)

if TYPE_CHECKING:
    from weir.openengine.v1.openengine_pb2_grpc import ControlAsyncStub, InferenceAsyncStub

Stream = grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]
Events = grpc.aio.UnaryStreamCall[pb.SubscribeKvEventsRequest, pb.SubscribeKvEventsResponse]
_READY = pb.HealthResponse(state=pb.HEALTH_STATE_READY)


class Server:
    """`seconds`: for an answer of the control service. Needs a running event loop; raises `AioRpcError`."""

    def __init__(self, address: str, tls_ca_file: Path | None, seconds: float) -> None:
        self._seconds = seconds
        self._channel = _open(address, tls_ca_file)
        self._inference: InferenceAsyncStub = InferenceStub(self._channel)
        self._control: ControlAsyncStub = ControlStub(self._channel)

    async def describe(self, model: str) -> Capabilities:
        """Raises WrongServerError too."""
        server = await self._who()
        check_server(server)
        info = await self._control.GetModelInfo(pb.GetModelInfoRequest(model=model), timeout=self._seconds)
        check_model(server, info, model)
        return read_capabilities(server, info)

    async def _who(self) -> pb.ServerInfo:
        try:
            return await self._control.GetServerInfo(pb.GetServerInfoRequest(), timeout=self._seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise WrongServerError("it does not speak openengine.v1") from error
            raise

    async def health(self) -> pb.HealthResponse:
        """READY of one that has no such call: it has answered."""
        try:
            return await self._control.Health(pb.HealthRequest(), timeout=self._seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return _READY
            raise

    async def load(self) -> pb.LoadInfo:
        return await self._control.GetLoad(pb.GetLoadRequest(), timeout=self._seconds)

    async def abort(self, request_id: str) -> bool:
        """Whether it knew the request, and ends it."""
        try:
            answer = await self._control.Abort(pb.AbortRequest(request_id=request_id), timeout=self._seconds)
        except grpc.aio.AioRpcError:
            return False
        return answer.status == pb.ABORT_STATUS_ABORTED

    async def load_adapter(self, number: int, name: str, directory: str, seconds: float) -> None:
        """`directory`: absolute, and the same where the server runs."""
        adapter = pb.LoraAdapter(lora_id=number, lora_name=name, source_path=directory)
        await self._control.LoadLora(pb.LoadLoraRequest(adapter=adapter), timeout=seconds)

    async def unload_adapter(self, name: str) -> None:
        await self._control.UnloadLora(pb.UnloadLoraRequest(lora_name=name), timeout=self._seconds)

    def generate(self, request: pb.GenerateRequest, metadata: tuple[tuple[str, str], ...]) -> Stream:
        """Without a deadline: whoever asked has one, and aborts."""
        return self._inference.Generate(request, metadata=metadata)

    def events(self) -> Events:
        return self._control.SubscribeKvEvents(pb.SubscribeKvEventsRequest(include_snapshot=True))

    async def close(self) -> None:
        await self._channel.close(None)


def _open(address: str, tls_ca_file: Path | None) -> grpc.aio.Channel:
    if tls_ca_file is None:
        return open_channel(address)
    credentials = grpc.ssl_channel_credentials(tls_ca_file.read_bytes())
    return grpc.aio.secure_channel(address, credentials, options=client_options())
