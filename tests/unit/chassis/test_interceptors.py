from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from unit.chassis.call_conformance import SERVICE, ScriptServicer, ScriptStub, failure_of, registration, wait_for_ever
from weir.inference.v1.stream_pb2 import Accepted, Receipt
from weir.router.v1.router_pb2 import NextToken, ResumeRequest, ResumeResponse
from weir.router.v1.router_pb2_grpc import (
    RouterServiceServicer,
    RouterServiceStub,
    add_RouterServiceServicer_to_server,
)
from weir_chassis import errors
from weir_chassis.calls import Calls
from weir_chassis.clock import SystemClock
from weir_chassis.deadline import time_left
from weir_chassis.interceptors import CallInterceptor, returns_last_message
from weir_chassis.metrics import Metrics
from weir_chassis.server import Registration
from weir_chassis.status import RemoteError, from_rpc_error, from_status, to_status
from weir_chassis.testing import serve_in_memory, serve_on_loopback

UNARY = f"/{SERVICE}/Unary"


@dataclass
class Toy:
    stub: ScriptStub
    servicer: ScriptServicer
    metrics: Metrics

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"weir_toy_{name}", labels)


@asynccontextmanager
async def toy(**options: Any) -> AsyncIterator[Toy]:
    metrics, servicer = Metrics("toy"), ScriptServicer()
    interceptor = CallInterceptor(metrics, Calls(), SystemClock(), Random(0), **options)
    async with serve_in_memory(registration(servicer), interceptor=interceptor) as channel:
        yield Toy(ScriptStub(channel), servicer, metrics)


async def test_calls_are_counted_by_method_code_and_reason() -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        if request:
            raise errors.ModelNotFound("m", [])
        return b""

    async with toy() as t:
        t.servicer.unary = unary
        await t.stub.unary(b"")
        await t.stub.unary(b"")
        await failure_of(t.stub.unary(b"x"))
        assert t.value("calls_total", method=UNARY, code="OK", reason="") == 2
        assert t.value("calls_total", method=UNARY, code="NOT_FOUND", reason="MODEL_NOT_FOUND") == 1
        assert t.value("call_seconds_count", method=UNARY) == 3
        assert t.value("calls_in_flight", method=UNARY) == 0


async def test_calls_in_flight_and_cancelled_ones() -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        await wait_for_ever()
        return b""

    async with toy() as t:
        t.servicer.unary = unary
        call = t.stub.unary(b"")
        await asyncio.sleep(0.01)
        assert t.value("calls_in_flight", method=UNARY) == 1
        call.cancel()
        await asyncio.sleep(0.01)
        assert t.value("calls_in_flight", method=UNARY) == 0
        assert t.value("calls_total", method=UNARY, code="CANCELLED", reason="CANCELLED") == 1


async def test_a_streams_last_message_goes_out_with_its_status() -> None:
    class Servicer(RouterServiceServicer):
        @returns_last_message
        async def Resume(self, request: ResumeRequest, context: Any) -> ResumeResponse:  # type: ignore[override]
            await context.write(ResumeResponse(accepted=Accepted(request_id=request.request_id)))
            if request.next:
                raise errors.NotFound("r", "it is gone")
            return ResumeResponse(receipt=Receipt(attempts=2))

    metrics = Metrics("toy")
    interceptor = CallInterceptor(metrics, Calls(), SystemClock(), Random(0))
    servicer = Servicer()  # type: ignore[abstract]  # it is asked nothing else
    routers = Registration(add_RouterServiceServicer_to_server, servicer, "weir.router.v1.RouterService")
    for serve in (serve_in_memory, serve_on_loopback):
        async with serve(routers, interceptor=interceptor) as channel:
            stub = RouterServiceStub(channel)
            kinds = [event.WhichOneof("event") async for event in stub.Resume(ResumeRequest(request_id="r"))]
            assert kinds == ["accepted", "receipt"]
            call = stub.Resume(ResumeRequest(next=[NextToken()]))
            first = await call.read()
            assert isinstance(first, ResumeResponse)
            assert first.WhichOneof("event") == "accepted"
            with pytest.raises(grpc.RpcError) as failed:
                await call.read()
            assert isinstance(from_rpc_error(failed.value), errors.NotFound)


async def test_strangers_methods_do_not_become_labels() -> None:
    async with toy() as t:
        await failure_of(t.stub.unknown(b""))
        assert t.value("calls_total", method="unknown", code="UNIMPLEMENTED", reason="UNSUPPORTED") == 1


async def test_a_call_without_a_deadline_gets_the_default() -> None:
    left: list[float | None] = []

    async def unary(request: bytes, context: Any) -> bytes:
        left.append(time_left(context))
        await wait_for_ever()
        return b""

    async with toy(default_deadline_seconds=0.05) as t:
        t.servicer.unary = unary
        failure = await failure_of(t.stub.unary(b""))
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    error = from_rpc_error(failure)
    assert isinstance(error, RemoteError)
    assert "0.05 s" in error.message
    assert left[0] is not None
    assert 0.0 < left[0] <= 0.05


async def test_the_callers_deadline_and_unbounded_methods_stand() -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        return repr(time_left(context)).encode()

    async with toy(default_deadline_seconds=0.05) as t:
        t.servicer.unary = unary
        assert float(await t.stub.unary(b"", timeout=9)) > 1
    async with toy(default_deadline_seconds=0.05, unbounded=frozenset({UNARY})) as t:
        t.servicer.unary = unary
        assert await t.stub.unary(b"") == b"None"


async def test_a_servicers_own_timeout_is_not_the_deadline() -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        raise TimeoutError("of something else")

    async with toy(default_deadline_seconds=5) as t:
        t.servicer.unary = unary
        assert (await failure_of(t.stub.unary(b""))).code() is grpc.StatusCode.INTERNAL


async def test_an_unknown_exception_is_logged_with_its_traceback() -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        raise KeyError("a detail")

    async with toy() as t:
        t.servicer.unary = unary
        with capture_logs() as logs:
            await failure_of(t.stub.unary(b""))
    (line,) = logs
    assert (line["event"], line["log_level"], line["reason"]) == ("call_failed", "error", "INTERNAL")
    assert isinstance(line["exc_info"], KeyError)


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (errors.InvalidArgument("x", "wrong"), "info"),
        (errors.Overloaded("full"), "info"),
        (errors.DataCorrupt("bad"), "warning"),
    ],
)
async def test_only_our_faults_are_loud(error: errors.WeirError, level: str) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        raise error

    async with toy() as t:
        t.servicer.unary = unary
        with capture_logs() as logs:
            await failure_of(t.stub.unary(b""))
    assert [line["log_level"] for line in logs] == [level]


REMOTE_TEMPLATE_FAILED = from_status(to_status(errors.TemplateFailed("prompt", "no: my secret")))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.TemplateFailed("prompt", "no: my secret"), {"reason": "TEMPLATE_FAILED", "fields": ["prompt"]}),
        (REMOTE_TEMPLATE_FAILED, {"reason": "TEMPLATE_FAILED", "fields": ["prompt"]}),
        (errors.ModelNotFound("my secret", []), {"reason": "MODEL_NOT_FOUND", "fields": []}),
        (errors.QuotaExceeded("tenant", "my secret"), {"reason": "QUOTA_EXCEEDED", "fields": []}),
        (errors.Overloaded("the queue is full"), {"reason": "OVERLOADED", "message": "the queue is full"}),
    ],
)
async def test_what_is_logged_of_a_refusal_quotes_no_client(error: errors.WeirError, line: dict[str, Any]) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        raise error

    async with toy() as t:
        t.servicer.unary = unary
        with capture_logs() as logs:
            failure = await failure_of(t.stub.unary(b""))
    assert logs == [{"event": "call_refused", "log_level": "info", "method": UNARY, **line}]
    assert from_rpc_error(failure).message == error.message


async def test_a_task_groups_first_error_is_the_calls() -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait_for_ever())
            group.create_task(_raise(errors.Overloaded("full")))
        return b""

    async with toy() as t:
        t.servicer.unary = unary
        assert isinstance(from_rpc_error(await failure_of(t.stub.unary(b""))), errors.Overloaded)


async def _raise(error: Exception) -> None:
    raise error


async def test_a_handler_is_wrapped_once() -> None:
    interceptor = CallInterceptor(Metrics("toy"), Calls(), SystemClock(), Random(0))

    async def unary(request: bytes, context: Any) -> bytes:
        return b""

    handler: Any = grpc.unary_unary_rpc_method_handler(unary)

    async def continuation(details: Any) -> Any:
        return handler

    details = grpc.HandlerCallDetails
    details.method = "/a/b"
    first = await interceptor.intercept_service(continuation, details)
    assert await interceptor.intercept_service(continuation, details) is first
