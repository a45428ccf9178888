"""grpc.health.v1, per service and per model. Health never depends on load: busy is not unhealthy.

grpcio-health-checking ships a servicer too, but there the end of one watcher of a name silences the others, and the
process as a whole is born SERVING.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from weir_chassis.errors import NotFound

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# The whole process, by the health protocol's own convention.
PROCESS = ""


def model_name(model: str) -> str:
    """The health name of a model: `model:<name>`."""
    return f"model:{model}"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """Knows which names serve. Everything is NOT_SERVING until it is said to serve, and for good once stopped."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {PROCESS: False}
        self._changed = asyncio.Event()
        self.stopped = asyncio.Event()

    def set(self, name: str, serving: bool) -> None:
        self._serving[name] = serving and not self.stopped.is_set()
        self._announce()

    def remove(self, name: str) -> None:
        """For a model that was unloaded; its watchers see SERVICE_UNKNOWN."""
        self._serving.pop(name, None)
        self._announce()

    def stop(self) -> None:
        """Everything is NOT_SERVING from now on, whatever anyone sets later."""
        self.stopped.set()
        self._serving = dict.fromkeys(self._serving, False)
        self._announce()

    def is_serving(self, name: str = PROCESS) -> bool:
        return self._serving.get(name, False)

    def names(self) -> Mapping[str, bool]:
        return dict(self._serving)

    async def Check(self, request: HealthCheckRequest, _context: Any) -> HealthCheckResponse:
        if request.service not in self._serving:
            raise NotFound(request.service, f"{request.service!r} is unknown to health")
        return HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: HealthCheckRequest, _context: Any) -> AsyncIterator[HealthCheckResponse]:
        """The status now and at each change. A watcher that is slower than the changes sees only the latest."""
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                yield HealthCheckResponse(status=status)
                last = status
                continue  # it may have changed while that was written
            await changed.wait()

    def _status(self, name: str) -> Any:
        if name not in self._serving:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self._serving[name] else HealthCheckResponse.NOT_SERVING

    def _announce(self) -> None:
        # Each change retires the event that watchers wait on, so that none is missed and none has to be cleared.
        self._changed.set()
        self._changed = asyncio.Event()
