"""`weir operations` against a router's door that plays a script."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result

from weir.router.v1 import fleet_pb2 as pb
from weir.router.v1.fleet_pb2_grpc import FleetServiceServicer, add_FleetServiceServicer_to_server
from weir_chassis.errors import NotFound, Overloaded
from weir_chassis.server import Registration
from weir_chassis.status import to_failure
from weir_chassis.testing import serve_in_memory
from weir_client import operations
from weir_client.cli import main

NAME = pb.DESCRIPTOR.services_by_name["FleetService"].full_name
FULL = to_failure(Overloaded("no slot is free"))


class ScriptedDoor(FleetServiceServicer):
    """One operation on two executors; `fails` at the second."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.started: list[pb.StartOperationRequest] = []
        self.cancelled: list[str] = []

    def operation(self, done: int) -> pb.Operation:
        first = pb.OperationProgress(executor="a:1", done_bytes=1024, total_bytes=2048, done=done > 0)
        failure = FULL if self.fails and done > 1 else None
        second = pb.OperationProgress(executor="b:1", done=done > 1, failure=failure)
        return pb.Operation(operation_id="7f", action="load x", done=done > 1, executors=[first, second])

    async def StartOperation(self, request: pb.StartOperationRequest, _: Any) -> pb.StartOperationResponse:
        self.started.append(request)
        return pb.StartOperationResponse(operation=self.operation(0))

    async def WatchOperation(
        self, request: pb.WatchOperationRequest, _: Any
    ) -> AsyncIterator[pb.WatchOperationResponse]:
        if request.operation_id != "7f":
            raise NotFound(request.operation_id, "no such operation")
        for done in range(3):
            yield pb.WatchOperationResponse(operation=self.operation(done))

    async def ListOperations(self, _: Any, __: Any) -> pb.ListOperationsResponse:
        return pb.ListOperationsResponse(operations=[self.operation(2)])

    async def CancelOperation(self, request: pb.CancelOperationRequest, _: Any) -> pb.CancelOperationResponse:
        self.cancelled.append(request.operation_id)
        return pb.CancelOperationResponse()

    async def GetFleet(self, _: Any, __: Any) -> Any:
        raise NotImplementedError

    async def ExplainRoute(self, _: Any, __: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> ScriptedDoor:
    script = ScriptedDoor()

    @asynccontextmanager
    async def connect(address: str) -> AsyncIterator[Any]:
        assert address == "router:1"
        servicer: object = script
        async with serve_in_memory(Registration(add_FleetServiceServicer_to_server, servicer, NAME)) as channel:
            yield channel

    monkeypatch.setattr(operations, "open_channel", connect)
    return script


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["operations", *arguments, "--router", "router:1"])


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (("load-model", "llama", "--model", "small"), {"load_model": pb.LoadModel(directory="llama", model="small")}),
        (("unload-model", "small"), {"unload_model": pb.UnloadModel(model="small")}),
        (("load-adapter", "law", "lora/law"), {"load_adapter": pb.LoadAdapter(name="law", directory="lora/law")}),
        (("unload-adapter", "law"), {"unload_adapter": pb.UnloadAdapter(name="law")}),
        (("load-adapter", "law", "d", "--model", "m", "--on", "a:1", "--on", "b:1"), {
            "load_adapter": pb.LoadAdapter(name="law", directory="d", model="m"), "executors": ["a:1", "b:1"],
        }),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_begun_and_followed(
    door: ScriptedDoor, arguments: tuple[str, ...], request_: dict[str, Any]
) -> None:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert door.started == [pb.StartOperationRequest(**request_)]
    assert done.stdout.split() == ["a:1", "done", "b:1", "done"]
    assert "1.0 KiB of 2.0 KiB" in done.stderr


def test_one_that_failed_somewhere_says_where_and_why(door: ScriptedDoor) -> None:
    door.fails = True
    failed = run("load-model", "x")
    assert failed.exit_code == 1
    assert "b:1                    failed: OVERLOADED: no slot is free" in failed.stdout


def test_nobody_has_to_wait(door: ScriptedDoor) -> None:
    assert run("load-model", "x", "--detach").output == "7f\n"
    assert run("watch", "7f").exit_code == 0
    unknown = run("watch", "8")
    assert (unknown.exit_code, "NOT_FOUND" in unknown.output) == (1, True)
    assert run("cancel", "7f").exit_code == 0
    assert door.cancelled == ["7f"]


def test_the_list_has_a_line_for_each(door: ScriptedDoor) -> None:
    assert run("list").output.splitlines()[1].split() == ["7f", "2", "of", "2", "done", "load", "x"]
