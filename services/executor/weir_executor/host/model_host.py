"""Models as executors of their own processes: started, watched, revived, ended."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import grpc

from weir.executor.v1.executor_pb2 import GetModelInfoRequest
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.inference.v1.model_pb2 import ModelVersion
from weir_chassis.channel import open_channel
from weir_chassis.child_process import ChildProcess, StartError
from weir_chassis.clock import Clock
from weir_chassis.errors import Internal, InvalidArgument, Overloaded
from weir_chassis.status import from_rpc_error
from weir_chassis.telemetry import get_logger
from weir_executor.folders import below
from weir_executor.host.hosted_models import Hosted, HostedModels, State
from weir_executor.host.loading_log import Loaded, LogTail, newest
from weir_executor.host.settings import ModelHostSettings, port_range

_NEEDED: Final = ("config.json", "tokenizer.json")
_LOOK_SECONDS, _ASK_SECONDS = 0.2, 10.0
# One that dies so often, each time soon after it was started, is not unlucky but wrong: its log says why.
_MAX_QUICK_ENDS, _STEADY_SECONDS, _PAUSE_SECONDS = 5, 60.0, 0.5
# Of a log, at one look: what a process writes in 0.2 s is far less.
_MAX_LOG_BYTES = 1 << 20


class ModelHost:
    """Used from one event loop. Every process has one task that owns it, from its start to its end."""

    def __init__(self, settings: ModelHostSettings, environment: Mapping[str, str], clock: Clock) -> None:
        """`environment`: ours, of which the executors' own variables are handed on."""
        self._settings, self._clock = settings, clock
        self._environment = {name: value for name, value in environment.items() if name.startswith("WEIR_EXECUTOR_")}
        self.models = HostedModels(settings.max_models)
        self._keepers: dict[Hosted, asyncio.Task[None]] = {}
        settings.log_dir.mkdir(parents=True, exist_ok=True)

    async def load(self, model: str, directory: str, revision: str = "") -> AsyncGenerator[Loaded | Hosted]:
        """How far it is, and last the model, which serves by then and stays when the iteration goes on from it.

        Whatever ends the iteration before that undoes the load. Raises InvalidArgument, AlreadyExists, Overloaded.
        """
        path = below(self._settings.model_folder, directory, _NEEDED, "model folder")
        if missing := [name for name in _NEEDED if not (path / name).is_file()]:
            raise InvalidArgument("directory", f"{directory!r}: {missing[0]} is missing")
        hosted = self.models.reserve(model, lambda: Hosted(model, directory, path, revision, self._free_address()))
        kept = False
        try:
            child = await self._start(hosted)
            keeper = asyncio.create_task(self._keep(hosted, child), name=f"keep-{model}")
            self._keepers[hosted] = keeper
            async for loaded in self._follow(hosted, keeper):
                yield loaded
            yield hosted
            kept = True
        finally:
            if not kept:
                await self._end(hosted)

    async def unload(self, model: str) -> None:
        """Returns when its process has ended. Raises NotFound."""
        await self._end(self.models.leaving(model))

    async def close(self) -> None:
        """All processes end, at the same time."""
        await asyncio.gather(*(self._end(hosted) for hosted in self.models))

    async def _follow(self, hosted: Hosted, keeper: asyncio.Task[None]) -> AsyncGenerator[Loaded]:
        """Until it serves. Raises InvalidArgument with its last words when it does not come to that."""
        log, tail = self._log(hosted), LogTail()
        while hosted.state is State.LOADING:
            await asyncio.wait({keeper}, timeout=_LOOK_SECONDS)
            if (loaded := newest(await asyncio.to_thread(_added, log, tail))) is not None:
                yield loaded
            if keeper.done():
                break
        if hosted.state is not State.SERVING:
            raise InvalidArgument("directory", f"{hosted.directory!r} cannot be served: {hosted.problem}")

    async def _keep(self, hosted: Hosted, child: ChildProcess) -> None:
        """Waits until it serves, and starts it anew whenever it ends by itself. Cancelled, ends it."""
        quick_ends = 0
        try:
            while True:
                started = self._clock.monotonic()
                try:
                    await child.until_serving(self._settings.start_seconds)
                    hosted.version = await _version(hosted.address)
                    hosted.state, hosted.problem = State.SERVING, ""
                    await child.wait()
                    hosted.problem = f"ended with code {child.returncode}: {child.tail()}"
                except (StartError, grpc.RpcError) as error:
                    hosted.problem = str(error) if isinstance(error, StartError) else from_rpc_error(error).message
                    await child.stop(self._settings.stop_seconds)
                lived = self._clock.monotonic() - started
                quick_ends = 1 if lived >= _STEADY_SECONDS else quick_ends + 1
                if hosted.state is State.LOADING and not (_was_killed(child) and quick_ends == 1):
                    return  # what a model that cannot be served says once, it would say again
                get_logger().warning("hosted_model_ended", model=hosted.model, code=child.returncode, times=quick_ends)
                if quick_ends >= _MAX_QUICK_ENDS:
                    hosted.state = State.FAILED
                    return
                await self._clock.sleep(_PAUSE_SECONDS)
                hosted.restarts += 1
                child = await self._start(hosted)
        finally:
            await child.stop(self._settings.stop_seconds)

    async def _end(self, hosted: Hosted) -> None:
        """Goes on by itself when this is cancelled while it waits: the process has an owner until it is gone."""
        hosted.state = State.UNLOADING
        keeper = self._keepers.get(hosted)
        if keeper is None:
            self.models.forget(hosted)
            return
        keeper.cancel()
        await asyncio.shield(self._ended(hosted, keeper))

    async def _ended(self, hosted: Hosted, keeper: asyncio.Task[None]) -> None:
        await asyncio.wait({keeper})
        self._keepers.pop(hosted, None)
        self.models.forget(hosted)

    async def _start(self, hosted: Hosted) -> ChildProcess:
        host, _, port = hosted.address.rpartition(":")
        told = {"MODEL": hosted.model, "MODEL_DIR": str(hosted.path), "HOST": host.strip("[]"), "PORT": port}
        told |= {"REVISION": hosted.revision, "METRICS_PORT": "0"}
        if self._settings.advertise:
            told["ADVERTISE"] = f"{self._settings.advertise.rpartition(':')[0]}:{port}"
        environment = self._environment | {f"WEIR_EXECUTOR_{name}": value for name, value in told.items()}
        log = self._log(hosted)
        if not hosted.restarts:
            log.unlink(missing_ok=True)
        try:
            return await ChildProcess.start("executor", hosted.address, environment, log)
        except OSError as error:
            raise Internal(f"no process for {hosted.model!r}: {error.strerror}") from error

    def _log(self, hosted: Hosted) -> Path:
        name = "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in hosted.model)
        return self._settings.log_dir / f"{name}-{hosted.address.rpartition(':')[2]}.log"

    def _free_address(self) -> str:
        host = self._settings.host
        shown = f"[{host}]" if ":" in host else host
        taken = {hosted.address for hosted in self.models}
        if not self._settings.ports:
            return f"{shown}:{_any_free_port(host)}"
        for port in port_range(self._settings.ports):
            if f"{shown}:{port}" not in taken and _is_free(host, port):
                return f"{shown}:{port}"
        raise Overloaded(f"all ports of {self._settings.ports} are taken")


def _was_killed(child: ChildProcess) -> bool:
    """By a signal, of which the model need not be the cause."""
    return child.returncode is not None and child.returncode < 0


async def _version(address: str) -> ModelVersion:
    async with open_channel(address) as channel:
        info = await ExecutorServiceStub(channel).GetModelInfo(GetModelInfoRequest(), timeout=_ASK_SECONDS)
    version: ModelVersion = info.model_version
    return version


def _added(log: Path, tail: LogTail) -> list[str]:
    with suppress(OSError), log.open("rb") as file:
        file.seek(tail.offset)
        return tail.lines(file.read(_MAX_LOG_BYTES))
    return []


def _any_free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
