"""What can be done to executors and model hosts, each as a stream of how far it is there."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from weir.executor.v1 import executor_pb2, host_pb2
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.executor.v1.host_pb2_grpc import ModelHostServiceStub
from weir.router.v1.fleet_pb2 import StartOperationRequest
from weir_chassis.errors import InvalidArgument, NotFound
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.operations.operation import Progress

_MAX_SHOWN_CHARS = 100
# The messages of one target, over a channel to it and with this many seconds at most.
Run = Callable[[grpc.aio.Channel, float], AsyncIterable[Any]]
# The hosts on which a model is loaded now.
FindHosts = Callable[[str], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Action:
    words: str
    subject: str
    targets: Sequence[str]
    run: Run


async def plan(
    request: StartOperationRequest, snapshot: FleetSnapshot, hosts: Sequence[str], find_hosts: FindHosts
) -> Action:
    """What is to be done, and where. Raises InvalidArgument, NotFound, NoWorker, ModelNotFound.

    `hosts`: all that are known. `find_hosts` asks them.
    """
    match request.WhichOneof("action"):
        case "load_model":
            _check_known(request.executors, hosts, "model hosts")
            return _load_model(request, hosts)
        case "unload_model":
            model = request.unload_model.model
            _check_known(request.executors, hosts, "model hosts")
            return _unload_model(request, model, await find_hosts(model))
        case "load_adapter":
            _check_known(request.executors, [executor.address for executor in snapshot.executors], "executors")
            return _load_adapter(request, snapshot)
        case "unload_adapter":
            _check_known(request.executors, [executor.address for executor in snapshot.executors], "executors")
            return _unload_adapter(request, snapshot)
        case _:
            raise InvalidArgument("action", "is required: load_model, unload_model, load_adapter or unload_adapter")


def progress(message: Any) -> Progress:
    """What a message of any of the four says."""
    loaded = getattr(message, "loaded_bytes", 0)
    return Progress(loaded, getattr(message, "total_bytes", 0))


def _load_model(request: StartOperationRequest, hosts: Sequence[str]) -> Action:
    asked = request.load_model
    model = asked.model or asked.directory.rstrip("/").rpartition("/")[2]
    targets = request.executors or hosts
    if not targets:
        raise NotFound("model host", "no model host is known here: WEIR_ROUTER_MODEL_HOSTS names them")

    def run(channel: grpc.aio.Channel, seconds: float) -> AsyncIterable[Any]:
        message = host_pb2.LoadModelRequest(model=model, directory=asked.directory)
        return ModelHostServiceStub(channel).LoadModel(message, timeout=seconds)

    return Action(f"load model {model} from {asked.directory}", f"model {model}", targets, run)


def _unload_model(request: StartOperationRequest, model: str, holding: Sequence[str]) -> Action:
    targets = request.executors or holding
    if not targets:
        raise NotFound(model, f"no model host has loaded {model!r}")

    def run(channel: grpc.aio.Channel, seconds: float) -> AsyncIterable[Any]:
        return ModelHostServiceStub(channel).UnloadModel(host_pb2.UnloadModelRequest(model=model), timeout=seconds)

    return Action(f"unload model {model}", f"model {model}", targets, run)


def _load_adapter(request: StartOperationRequest, snapshot: FleetSnapshot) -> Action:
    asked = request.load_adapter

    def run(channel: grpc.aio.Channel, seconds: float) -> AsyncIterable[Any]:
        message = executor_pb2.LoadAdapterRequest(name=asked.name, directory=asked.directory)
        return ExecutorServiceStub(channel).LoadAdapter(message, timeout=seconds)

    targets = request.executors or _serving(snapshot, asked.model)
    return Action(f"load adapter {asked.name} from {asked.directory}", f"adapter {asked.name}", targets, run)


def _unload_adapter(request: StartOperationRequest, snapshot: FleetSnapshot) -> Action:
    asked = request.unload_adapter

    def run(channel: grpc.aio.Channel, seconds: float) -> AsyncIterable[Any]:
        message = executor_pb2.UnloadAdapterRequest(name=asked.name)
        return ExecutorServiceStub(channel).UnloadAdapter(message, timeout=seconds)

    model = snapshot.resolve_model(asked.model)
    holding = [e.address for e in snapshot.serving(model) if asked.name in e.adapters]
    targets = request.executors or holding
    if not targets:
        raise NotFound(asked.name, f"no executor of {model!r} has loaded an adapter {asked.name!r}")
    return Action(f"unload adapter {asked.name}", f"adapter {asked.name}", targets, run)


def _check_known(asked: Sequence[str], known: Sequence[str], what: str) -> None:
    """A router connects to nobody but those that it was told of."""
    if strangers := [address for address in asked if address not in known]:
        raise InvalidArgument("executors", f"{strangers[0][:_MAX_SHOWN_CHARS]!r} is none of the {what} known here")


def _serving(snapshot: FleetSnapshot, model: str) -> list[str]:
    """Of the model, those that are there; one that comes later has what its settings say."""
    return [executor.address for executor in snapshot.serving(snapshot.resolve_model(model))]
