"""Operations through a real router's door: on fake executors, and on a scripted model host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from weir.executor.v1 import host_pb2
from weir.executor.v1.host_pb2_grpc import ModelHostServiceServicer, add_ModelHostServiceServicer_to_server
from weir.inference.v1.model_pb2 import ModelVersion
from weir.router.v1 import fleet_pb2 as pb
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir_chassis.background import Background
from weir_chassis.errors import AlreadyExists, Overloaded, WeirError, reason_name
from weir_chassis.server import Registration
from weir_chassis.status import from_failure, from_rpc_error
from weir_chassis.testing import VirtualClock, serve_in_memory
from weir_router.fleet.hosted import HostedExecutors
from weir_router.fleet.membership import Place
from weir_router.fleet.model_hosts import ModelHosts
from weir_router.operations import operations as module
from weir_router.operations.actions import Action
from weir_router.operations.operation import Operation, Progress
from weir_router.operations.operations import Operations

if TYPE_CHECKING:
    from weir.router.v1.fleet_pb2_grpc import FleetServiceAsyncStub

HOST_NAME = host_pb2.DESCRIPTOR.services_by_name["ModelHostService"].full_name


class ScriptedHost(ModelHostServiceServicer):
    """Loads in two steps, the second when `may_go_on` is set."""

    def __init__(self) -> None:
        self.loaded: dict[str, host_pb2.HostedModel] = {}
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.refusal: WeirError | None = None
        self.given_up = 0

    async def LoadModel(self, request: host_pb2.LoadModelRequest, _: Any) -> AsyncIterator[host_pb2.LoadModelResponse]:
        if self.refusal is not None:
            raise self.refusal
        try:
            yield host_pb2.LoadModelResponse(loaded_bytes=3, total_bytes=7)
            await self.may_go_on.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        hosted = host_pb2.HostedModel(
            model_version=ModelVersion(model=request.model),
            address=f"{request.model}:1",
            state=host_pb2.HOSTED_MODEL_STATE_SERVING,
        )
        self.loaded[request.model] = hosted
        yield host_pb2.LoadModelResponse(loaded_bytes=7, total_bytes=7, model=hosted)

    async def UnloadModel(
        self, request: host_pb2.UnloadModelRequest, _: Any
    ) -> AsyncIterator[host_pb2.UnloadModelResponse]:
        del self.loaded[request.model]
        yield host_pb2.UnloadModelResponse()

    async def ListHostedModels(self, _: Any, __: Any) -> host_pb2.ListHostedModelsResponse:
        return host_pb2.ListHostedModelsResponse(models=self.loaded.values())


@dataclass
class Hosts:
    """Reached by name; a name that nobody has is a host that is down."""

    by_name: dict[str, ScriptedHost]
    connections: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def connect(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        self.connections.append(address)
        servicer: object = self.by_name.get(address)
        if servicer is None:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "down")
        async with serve_in_memory(
            Registration(add_ModelHostServiceServicer_to_server, servicer, HOST_NAME)
        ) as channel:
            yield channel


def action(hosts: Hosts, *targets: str, model: str = "m") -> Action:
    from weir.executor.v1.host_pb2_grpc import ModelHostServiceStub

    def run(channel: grpc.aio.Channel, seconds: float) -> Any:
        request = host_pb2.LoadModelRequest(model=model, directory="d")
        return ModelHostServiceStub(channel).LoadModel(request, timeout=seconds)

    return Action(f"load model {model}", f"model {model}", targets or tuple(hosts.by_name), run)


@asynccontextmanager
async def operating(hosts: Hosts) -> AsyncIterator[Operations]:
    numbers = iter(range(1000))
    async with Background() as background:
        connect: Any = hosts.connect
        yield Operations(background, connect, lambda: str(next(numbers)), max_seconds=60.0)


async def done(operations: Operations, operation: Operation) -> list[dict[str, Progress]]:
    return [dict(seen.targets) async for seen in operations.watch(operation.operation_id)]


async def test_an_operation_is_seen_from_its_beginning_to_its_end() -> None:
    hosts = Hosts({"a": ScriptedHost(), "b": ScriptedHost()})
    hosts.by_name["b"].may_go_on.clear()
    async with operating(hosts) as operations:
        operation = operations.start(action(hosts))
        seen = []
        async for _ in operations.watch(operation.operation_id):
            seen.append(dict(operation.targets))
            if operation.targets["a"].done:
                hosts.by_name["b"].may_go_on.set()
        assert seen[0] == {"a": Progress(), "b": Progress()}
        assert seen[-1] == {target: Progress(7, 7, done=True) for target in "ab"}
        assert Progress(3, 7) in [each["b"] for each in seen]
        assert await done(operations, operation) == [seen[-1]], "who asks later is told how it ended"


async def test_its_last_word_is_told_though_it_comes_while_another_is_read() -> None:
    hosts = Hosts({"a": ScriptedHost()})
    async with operating(hosts) as operations:
        operation, told = operations.start(action(hosts)), list[bool]()
        async for seen in operations.watch(operation.operation_id):
            told.append(seen.done)
            while not operation.done:
                await asyncio.sleep(0.001)
    assert told == [False, True]


async def test_what_fails_at_one_target_is_told_and_stops_nobody_else() -> None:
    hosts = Hosts({"a": ScriptedHost(), "b": ScriptedHost()})
    hosts.by_name["b"].refusal = Overloaded("full")
    async with operating(hosts) as operations:
        *_, last = await done(operations, operations.start(action(hosts, "a", "b", "gone")))
    assert last["a"] == Progress(7, 7, done=True)
    assert (last["b"].done, last["gone"].done) == (True, True)
    errors = [last[name].error for name in ("b", "gone")]
    assert [reason_name(error.reason) for error in errors if error] == ["OVERLOADED", "WORKER_LOST"]


async def test_a_cancelled_operation_begins_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    hosts = Hosts({"a": ScriptedHost(), "b": ScriptedHost()})
    hosts.by_name["a"].may_go_on.clear()
    async with operating(hosts) as operations:
        operation = operations.start(action(hosts))
        async for _ in operations.watch(operation.operation_id):
            if operation.targets["a"].done_bytes and not operation.cancelled:
                operations.cancel(operation.operation_id)
                hosts.by_name["a"].may_go_on.set()
        assert operation.targets["a"].error is None, "what was begun is finished"
        error = operation.targets["b"].error
    assert error is not None
    assert reason_name(error.reason) == "CANCELLED"
    assert hosts.connections == ["a"]


async def test_two_about_the_same_are_not_under_way_at_once_and_all_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MAX_RUNNING", 2)
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 3)
    hosts = Hosts({"a": ScriptedHost()})
    hosts.by_name["a"].may_go_on.clear()
    async with operating(hosts) as operations:
        first, second = (operations.start(action(hosts, model=model)) for model in ("m", "n"))
        with pytest.raises(AlreadyExists, match="under way as 0"):
            operations.start(action(hosts, model="m"))
        with pytest.raises(Overloaded):
            operations.start(action(hosts, model="o"))
        hosts.by_name["a"].may_go_on.set()
        for operation in (first, second):
            await done(operations, operation)
        for model in "opq":
            await done(operations, operations.start(action(hosts, model=model)))
        assert [operation.action[-1] for operation in operations] == ["o", "p", "q"]


async def test_a_router_that_ends_gives_up_what_is_under_way() -> None:
    hosts = Hosts({"a": ScriptedHost()})
    hosts.by_name["a"].may_go_on.clear()
    async with operating(hosts) as operations:
        operation = operations.start(action(hosts))
        async for _ in operations.watch(operation.operation_id):
            if operation.targets["a"].done_bytes:
                break
    assert hosts.by_name["a"].given_up == 1


async def test_hosts_tell_what_they_have() -> None:
    hosts = Hosts({"a": ScriptedHost(), "b": ScriptedHost()})
    hosts.by_name["b"].loaded["m"] = host_pb2.HostedModel(
        model_version=ModelVersion(model="m"), address="e:1", state=host_pb2.HOSTED_MODEL_STATE_SERVING
    )
    connect: Any = hosts.connect
    known = ModelHosts(["a", "b", "gone"], connect)
    assert await known.holding("m") == ["b"]
    assert await known.holding("n") == []
    assert await known.executors() == {"a": [], "b": ["e:1"], "gone": None}


async def test_what_hosts_serve_is_found_and_a_silent_host_keeps_what_it_had() -> None:
    hosts, changes = Hosts({"a": ScriptedHost(), "b": ScriptedHost()}), list[int]()
    connect: Any = hosts.connect
    found = HostedExecutors(
        ModelHosts(["a", "b"], connect), VirtualClock(), lambda: changes.append(1), interval_seconds=1
    )
    await found.ask()
    assert (found.places, len(changes)) == ([], 1)
    hosts.by_name["a"].loaded["m"] = host_pb2.HostedModel(address="e:1", state=host_pb2.HOSTED_MODEL_STATE_SERVING)
    hosts.by_name["b"].loaded["n"] = host_pb2.HostedModel(address="e:2", state=host_pb2.HOSTED_MODEL_STATE_LOADING)
    for _ in range(2):
        await found.ask()
    assert (found.places, len(changes)) == ([Place("executor", "e:1")], 2)
    gone = hosts.by_name.pop("a")
    await found.ask()
    assert found.places == [Place("executor", "e:1")]
    hosts.by_name["a"] = gone
    gone.loaded.clear()
    await found.ask()
    assert (found.places, len(changes)) == ([], 3)


# ── through the door ──────────────────────────────────────────────────────────────────────────────────────────────────


def door(running: Suite) -> FleetServiceAsyncStub:
    return FleetServiceStub(running.channel)


async def over(running: Suite, request: pb.StartOperationRequest) -> pb.Operation:
    started = (await door(running).StartOperation(request)).operation
    watch = door(running).WatchOperation(pb.WatchOperationRequest(operation_id=started.operation_id))
    *_, last = [message.operation async for message in watch]
    assert last.done
    return last


async def refusal(call: Any) -> WeirError:
    with pytest.raises(grpc.RpcError) as refused:
        await call
    return from_rpc_error(refused.value)


async def test_an_adapter_is_loaded_on_every_executor_of_the_model_and_unloaded_where_it_is() -> None:
    async with suite(executors=[FakeExecutor(), FakeExecutor()]) as running:
        load = pb.StartOperationRequest(load_adapter=pb.LoadAdapter(name="law", directory="lora/law"))
        told = await over(running, load)
        assert [each.executor for each in told.executors] == list(running.fakes.addresses("executor"))
        # The double takes none, and says so: what an executor says is what the operator sees.
        reasons = [reason_name(from_failure(each.failure).reason) for each in told.executors]
        assert reasons == ["UNSUPPORTED", "UNSUPPORTED"]
        listed = await door(running).ListOperations(pb.ListOperationsRequest())
        assert [operation.action for operation in listed.operations] == ["load adapter law from lora/law"]
        gone = pb.StartOperationRequest(unload_adapter=pb.UnloadAdapter(name="law"))
        assert reason_name((await refusal(door(running).StartOperation(gone))).reason) == "NOT_FOUND"


@pytest.mark.parametrize(
    ("request_", "reason", "words"),
    [
        (pb.StartOperationRequest(), "INVALID_ARGUMENT", "action"),
        (pb.StartOperationRequest(load_model=pb.LoadModel(directory="d")), "NOT_FOUND", "WEIR_ROUTER_MODEL_HOSTS"),
        (pb.StartOperationRequest(unload_model=pb.UnloadModel(model="m")), "NOT_FOUND", "no model host has loaded"),
        (
            pb.StartOperationRequest(executors=["evil:1"], load_adapter=pb.LoadAdapter(name="a", directory="d")),
            "INVALID_ARGUMENT",
            "'evil:1' is none of the executors known here",
        ),
        (
            pb.StartOperationRequest(executors=["evil:1"], load_model=pb.LoadModel(directory="d")),
            "INVALID_ARGUMENT",
            "none of the model hosts known here",
        ),
        (
            pb.StartOperationRequest(load_adapter=pb.LoadAdapter(name="a", directory="d", model="none")),
            "MODEL_NOT_FOUND",
            "none",
        ),
    ],
)
async def test_what_cannot_be_begun_is_refused_at_once(
    request_: pb.StartOperationRequest, reason: str, words: str
) -> None:
    async with suite() as running:
        error = await refusal(door(running).StartOperation(request_))
        assert reason_name(error.reason) == reason
        assert words in error.message
        unknown = door(running).CancelOperation(pb.CancelOperationRequest(operation_id="x"))
        assert reason_name((await refusal(unknown)).reason) == "NOT_FOUND"
