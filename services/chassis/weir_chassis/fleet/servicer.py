"""`weir.fleet.v1.InstanceService`, the same for all services."""

from __future__ import annotations

from typing import Any, Final

from weir.fleet.v1.instance_pb2 import DESCRIPTOR, GetInstanceRequest, GetInstanceResponse
from weir.fleet.v1.instance_pb2_grpc import InstanceServiceServicer
from weir_chassis.fleet.identity import Identity

SERVICE_NAME: Final = DESCRIPTOR.services_by_name["InstanceService"].full_name


class InstanceServicer(InstanceServiceServicer):
    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def GetInstance(self, _: GetInstanceRequest, __: Any) -> GetInstanceResponse:
        return GetInstanceResponse(instance=self._identity.instance())
