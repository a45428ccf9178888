from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from weir_chassis import errors
from weir_chassis.health import Health, model_name
from weir_chassis.status import from_rpc_error
from weir_chassis.testing import serve_in_memory, serve_on_loopback

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


@asynccontextmanager
async def stub_to(health: Health, serve: Any = serve_in_memory) -> AsyncIterator[Any]:
    async with serve(health=health) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def check(stub: Any, name: str) -> int:
    return int((await stub.Check(HealthCheckRequest(service=name), timeout=5)).status)


@pytest.mark.parametrize("serve", [serve_in_memory, serve_on_loopback])
async def test_nothing_serves_until_it_is_said_to(serve: Any) -> None:
    health = Health()
    async with stub_to(health, serve) as stub:
        assert await check(stub, "") == NOT_SERVING
        health.set("", True)
        health.set(model_name("m"), True)
        assert await check(stub, "") == SERVING
        assert await check(stub, "model:m") == SERVING


async def test_an_unknown_name_is_not_found() -> None:
    async with stub_to(Health()) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="unknown to health") as caught:
            await check(stub, "nobody")
        assert isinstance(from_rpc_error(caught.value), errors.NotFound)


async def test_two_watchers_see_each_change_and_one_may_leave() -> None:
    health = Health()
    async with stub_to(health) as stub:
        first = stub.Watch(HealthCheckRequest(service="model:m"))
        second = stub.Watch(HealthCheckRequest(service="model:m"))
        assert [(await first.read()).status, (await second.read()).status] == [UNKNOWN, UNKNOWN]
        health.set("model:m", True)
        assert [(await first.read()).status, (await second.read()).status] == [SERVING, SERVING]
        first.cancel()
        health.set("model:m", False)
        assert (await second.read()).status == NOT_SERVING
        health.remove("model:m")
        assert (await second.read()).status == UNKNOWN
        second.cancel()


async def test_a_change_back_and_forth_may_be_missed_but_never_the_last() -> None:
    health = Health()
    async with stub_to(health) as stub:
        watch = stub.Watch(HealthCheckRequest(service=""))
        assert (await watch.read()).status == NOT_SERVING
        for serving in (True, False, True):
            health.set("", serving)
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_stopping_is_for_good() -> None:
    health = Health()
    health.set("", True)
    health.stop()
    health.set("", True)
    health.set("late", True)
    assert health.names() == {"": False, "late": False}
    assert not health.is_serving()
