"""Another Weir router, a region say, as a worker: its events are passed on as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc

from weir.fleet.v1.instance_pb2 import GetInstanceRequest, Instance
from weir.fleet.v1.instance_pb2_grpc import InstanceServiceStub
from weir.router.v1.router_pb2 import GenerateRequest, ListModelsRequest, Model
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import Connect, call_metadata, cancelling
from weir_chassis.deadline import hop_timeout
from weir_chassis.errors import Cancelled, WeirError, WorkerLost
from weir_chassis.status import RemoteError, from_rpc_error
from weir_chassis.tenant import tenant_metadata
from weir_router.delivery import Event
from weir_router.fleet.model_version import Version
from weir_router.fleet.traits import traits_of
from weir_router.fleet.views import ExecutorModel, Traits
from weir_router.providers.config import RouterTable
from weir_router.providers.errors import Away
from weir_router.providers.external import ExternalContext, ExternalRequest, ExternalWorker
from weir_router.providers.remote_request import remote_request
from weir_router.providers.via import via_metadata

if TYPE_CHECKING:
    from weir.router.v1.router_pb2_grpc import RouterServiceAsyncStub

_PROBE_SECONDS: Final = 5.0


class RemoteRouter(ExternalWorker):
    """`own_id`: the instance id by which this router is known to the next one."""

    kind, forwards = "router", True

    def __init__(self, table: RouterTable, context: ExternalContext, connect: Connect, own_id: str):
        super().__init__(table, context)
        self.router, self._own_id = table, own_id
        self._channel = connect(table.address)
        self._stub: RouterServiceAsyncStub = RouterServiceStub(self._channel)
        self._instance = Instance()

    @property
    def traits(self) -> Traits:
        """As configured; what is left open there, it may say itself."""
        told, own = traits_of(self._instance), super().traits
        region, price = own.region or told.region, own.price or told.price
        return Traits(told.instance_id, told.epoch, region, price, own.weight, told.capabilities, own.capacity)

    async def close(self) -> None:
        await self._channel.close()

    async def probe(self) -> None:
        try:
            listed = await self._stub.ListModels(ListModelsRequest(), timeout=_PROBE_SECONDS)
            self._instance = await self._ask_instance()
        except grpc.RpcError as error:
            raise self._explained(error) from None
        told, own = self._instance.region, self.table.region
        if told and own and told != own:
            raise Away(f"{self.address} says that it is in {told}, and not in {own}")
        models = _models(listed.models, self.router.models)
        if models != self.models:
            self.models = models
            self.context.on_change()

    async def execute(self, asked: ExternalRequest) -> AsyncGenerator[Event, None]:
        with cancelling(self._call(asked)) as call:
            limit = self.table.first_answer_seconds
            while (response := await self._read(call, limit)) is not grpc.aio.EOF:
                event: Event = getattr(response, response.WhichOneof("event"))
                yield event
                limit = self.table.silence_seconds

    def _call(self, asked: ExternalRequest) -> Any:
        request, timeout = asked.request, hop_timeout(asked.left_seconds)
        metadata = (*call_metadata(), *tenant_metadata(request.tenant), *via_metadata(request.via, self._own_id))
        message = remote_request(request, self.traits.region)
        name = self.router.models.get(asked.model, asked.model)
        message.model = f"{name}@{asked.revision}" if asked.revision else name
        if isinstance(message, GenerateRequest):
            return self._stub.Generate(message, timeout=timeout, metadata=metadata)
        return self._stub.Chat(message, timeout=timeout, metadata=metadata)

    async def _read(self, call: Any, limit: float) -> Any:
        try:
            async with asyncio.timeout(limit):
                return await call.read()
        except TimeoutError:
            message = f"{self.address} has sent nothing for {limit:g} s"
            raise WorkerLost(message, metadata={"worker": self.address}) from None
        except grpc.RpcError as error:
            raise self._explained(error) from None

    async def _ask_instance(self) -> Instance:
        """One that does not know the question is a router all the same, of which nothing more is known."""
        try:
            answer = await InstanceServiceStub(self._channel).GetInstance(GetInstanceRequest(), timeout=_PROBE_SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            return Instance()
        return answer.instance

    def _explained(self, error: grpc.RpcError) -> WeirError:
        """What it says itself is passed on; what gRPC says for it means that it is not there."""
        told = from_rpc_error(error)
        if isinstance(told, RemoteError):
            return told
        message, worker = f"{self.address} was lost: {told.message}", {"worker": self.address}
        if isinstance(told, WorkerLost):
            return Away(message, metadata=worker)
        return WorkerLost(message, metadata=worker) if isinstance(told, Cancelled) else told


def _models(listed: Iterable[Model], names: Mapping[str, str]) -> Mapping[str, ExecutorModel]:
    """Those that have a healthy worker there, by the names that clients use here; of versions, the commonest."""
    local = {theirs: ours for ours, theirs in names.items()}
    found: dict[str, tuple[int, ExecutorModel]] = {}
    for model in listed:
        theirs = model.model_version.model
        name = local.get(theirs, "") if names else theirs
        if name and model.healthy_workers > found.get(name, (0, None))[0]:
            version = Version(name, model.model_version.revision, model.model_version.tokenizer_hash)
            found[name] = (model.healthy_workers, ExecutorModel(version, 0, model.max_model_len, block_size=1))
    return {name: known for name, (_, known) in found.items()}
