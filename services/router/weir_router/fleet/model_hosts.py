"""The hosts that this router was told of, and what they have loaded: asked when somebody wants to know."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import grpc

from weir.executor.v1.host_pb2 import HOSTED_MODEL_STATE_SERVING, HostedModel, ListHostedModelsRequest
from weir.executor.v1.host_pb2_grpc import ModelHostServiceStub
from weir_chassis.channel import Connect
from weir_chassis.telemetry import get_logger

_ASK_SECONDS: Final = 5.0


class ModelHosts:
    def __init__(self, addresses: Sequence[str], connect: Connect) -> None:
        self.addresses, self._connect = addresses, connect

    async def holding(self, model: str) -> list[str]:
        """Addresses of the hosts that have a model of this name, in whatever state; a silent one has none."""
        found = await asyncio.gather(*map(self._models, self.addresses))
        return [
            address
            for address, models in zip(self.addresses, found, strict=True)
            if any(hosted.model_version.model == model for hosted in models or ())
        ]

    async def executors(self) -> dict[str, list[str] | None]:
        """By host, addresses of the executors that serve there now; None: it is silent."""
        found = await asyncio.gather(*map(self._models, self.addresses))
        return {host: _serving(models) for host, models in zip(self.addresses, found, strict=True)}

    async def _models(self, address: str) -> Sequence[HostedModel] | None:
        try:
            async with self._connect(address) as channel:
                answer = await ModelHostServiceStub(channel).ListHostedModels(
                    ListHostedModelsRequest(), timeout=_ASK_SECONDS
                )
        except grpc.RpcError as error:
            get_logger().warning("model_host_silent", address=address, code=error.code().name)
            return None
        models: Sequence[HostedModel] = answer.models
        return models


def _serving(models: Sequence[HostedModel] | None) -> list[str] | None:
    if models is None:
        return None
    return [hosted.address for hosted in models if hosted.state == HOSTED_MODEL_STATE_SERVING]
