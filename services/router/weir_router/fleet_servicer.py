"""The operators' door: who is there, where a request would go, and what executors have loaded."""

# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from weir.router.v1.fleet_pb2 import (
    CancelOperationRequest,
    CancelOperationResponse,
    ExplainRouteRequest,
    ExplainRouteResponse,
    GetFleetRequest,
    GetFleetResponse,
    ListOperationsRequest,
    ListOperationsResponse,
    StartOperationRequest,
    StartOperationResponse,
    WatchOperationRequest,
    WatchOperationResponse,
)
from weir.router.v1.fleet_pb2_grpc import FleetServiceServicer
from weir_chassis.deadline import time_left
from weir_chassis.errors import InvalidArgument
from weir_router.explanation import Explainer
from weir_router.fleet.model_hosts import ModelHosts
from weir_router.fleet_report import to_fleet
from weir_router.incoming import incoming
from weir_router.mapping import alias
from weir_router.models.aliases import unserved
from weir_router.operations.actions import plan
from weir_router.operations.mapping import to_operation
from weir_router.operations.operations import Operations
from weir_router.routing import Routing


class FleetServicer(FleetServiceServicer):
    def __init__(self, routing: Routing, explainer: Explainer, operations: Operations, model_hosts: ModelHosts):
        self.routing, self._explainer = routing, explainer
        self._operations, self._model_hosts = operations, model_hosts

    async def GetFleet(self, request: GetFleetRequest, context: Any) -> GetFleetResponse:
        response = to_fleet(self.routing.fleet, self.routing.fleet.now())
        aliases = self.routing.aliases.view()
        response.aliases.extend(alias(name, targets) for name, targets in aliases.items())
        response.problems.extend(unserved(aliases, self.routing.fleet.snapshot()))
        return response

    async def ExplainRoute(self, request: ExplainRouteRequest, context: Any) -> ExplainRouteResponse:
        kind = request.WhichOneof("request")
        if kind is None:
            raise InvalidArgument("request", "is required: `generate` or `chat`")
        wanted = incoming(getattr(request, kind), context.invocation_metadata(), self.routing, seed=0)
        return await self._explainer.explain(wanted, time_left(context))

    async def StartOperation(self, request: StartOperationRequest, context: Any) -> StartOperationResponse:
        hosts = self._model_hosts
        action = await plan(request, self.routing.fleet.snapshot(), hosts.addresses, hosts.holding)
        return StartOperationResponse(operation=to_operation(self._operations.start(action)))

    async def WatchOperation(
        self, request: WatchOperationRequest, context: Any
    ) -> AsyncIterator[WatchOperationResponse]:
        async with aclosing(self._operations.watch(request.operation_id)) as versions:
            async for operation in versions:
                yield WatchOperationResponse(operation=to_operation(operation))

    async def ListOperations(self, request: ListOperationsRequest, context: Any) -> ListOperationsResponse:
        return ListOperationsResponse(operations=map(to_operation, self._operations))

    async def CancelOperation(self, request: CancelOperationRequest, context: Any) -> CancelOperationResponse:
        self._operations.cancel(request.operation_id)
        return CancelOperationResponse()
