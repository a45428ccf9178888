"""The operators' door: who is there, where a request would go, and what executors have loaded."""

# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import AsyncIterator
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
from weir_chassis.errors import Unsupported
from weir_router.routing import Routing


class FleetServicer(FleetServiceServicer):
    def __init__(self, routing: Routing):
        self.routing = routing

    async def GetFleet(self, request: GetFleetRequest, context: Any) -> GetFleetResponse:
        raise Unsupported("GetFleet is not built")

    async def ExplainRoute(self, request: ExplainRouteRequest, context: Any) -> ExplainRouteResponse:
        raise Unsupported("ExplainRoute is not built")

    async def StartOperation(self, request: StartOperationRequest, context: Any) -> StartOperationResponse:
        raise Unsupported("StartOperation is not built")

    async def WatchOperation(
        self, request: WatchOperationRequest, context: Any
    ) -> AsyncIterator[WatchOperationResponse]:
        raise Unsupported("WatchOperation is not built")
        yield

    async def ListOperations(self, request: ListOperationsRequest, context: Any) -> ListOperationsResponse:
        raise Unsupported("ListOperations is not built")

    async def CancelOperation(self, request: CancelOperationRequest, context: Any) -> CancelOperationResponse:
        raise Unsupported("CancelOperation is not built")
