"""One worker, kept connected: probe it, live with it until something fails, pause, and again.

    DOWN ── probe answers ──► SERVING ◄── health ──► DRAINING
     ▲                           │ stream, health watch or probe fails
     └──── pause, doubling ──────┘

A worker that is not there when the router starts is no error: it is probed like one that was lost.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weir.fleet.v1.instance_pb2 import GetInstanceRequest, GetInstanceResponse, Instance
from weir.fleet.v1.instance_pb2_grpc import InstanceServiceStub
from weir_chassis.channel import Connect
from weir_chassis.clock import Clock
from weir_chassis.errors import WeirError, WorkerLost
from weir_chassis.status import from_rpc_error
from weir_chassis.telemetry import get_logger
from weir_router.faults.breakers import Breakers
from weir_router.fleet.changes import Changes
from weir_router.fleet.membership import Place, WorkerKind
from weir_router.fleet.ramp import ramp
from weir_router.fleet.traits import traits_of
from weir_router.fleet.views import Traits, WorkerState
from weir_router.regions import Residency
from weir_router.settings import RouterSettings
from weir_router.write_pace import WritePace


@dataclass(frozen=True, slots=True)
class LinkContext:
    """What every link is given. `jitter` draws from [0, 1); `on_change` is told of every change of a state.

    Who is there within the first moments after `started_at` (monotonic seconds) is new to this router only.
    """

    settings: RouterSettings
    connect: Connect
    clock: Clock
    jitter: Callable[[], float]
    on_change: Callable[[], None]
    changes: Changes = field(default_factory=Changes)
    # None: nobody is ejected.
    breakers: Breakers | None = None
    started_at: float = float("-inf")
    # For whom messages to workers may wait.
    pace: WritePace = field(default_factory=WritePace)


class Link(ABC):
    kind: WorkerKind
    # The worker's name in grpc.health.v1.
    service: str

    def __init__(self, address: str, context: LinkContext):
        self.address, self.context = address, context
        self.channel = context.connect(address)
        self.state = WorkerState.DOWN
        # As it has said when it was last connected.
        self.instance = Instance()
        self.traits = Traits()
        # Monotonic seconds: since when the state is what it is, and since when it serves, if it was new then.
        self.since = context.clock.monotonic()
        self._new_since: float | None = None
        self._returns = False  # it has served before
        self._is_up = False  # it serves, or has drained since it did
        # It is no member of the fleet any more, and is kept for what lives on it.
        self.leaving = False
        # Another link is to the same process, and is given its requests.
        self.is_twin = False

    @property
    def place(self) -> Place:
        return Place(self.kind, self.address)

    def permitted(self, residency: Residency) -> Self:
        """Itself, for a request that may go where it is. Raises ResidencyViolated for another."""
        residency.require(self.address, self.traits.region)
        return self

    async def run(self) -> NoReturn:
        settings = self.context.settings
        pause = settings.reconnect_min_seconds
        while True:
            began, lived = self.context.clock.monotonic(), False
            try:
                await self._live()
            except* (WeirError, grpc.RpcError) as errors:
                # One that comes and goes within a moment is paused for as one that does not come.
                lived_seconds = self.context.clock.monotonic() - began
                lived = self.state is not WorkerState.DOWN and lived_seconds >= settings.reconnect_max_seconds
                self._set_state(WorkerState.DOWN, _cause(errors))
            pause = settings.reconnect_min_seconds if lived else min(2 * pause, settings.reconnect_max_seconds)
            # Half of the pause is drawn, so that many routers do not probe a returning worker in step.
            await self.context.clock.sleep(pause * (0.5 + 0.5 * self.context.jitter()))

    async def close(self, grace_seconds: float | None = None) -> None:
        if self.context.breakers is not None:
            self.context.breakers.forget(self.address)
        await self.channel.close(grace_seconds)

    def current_state(self) -> WorkerState:
        """What requests may expect of it."""
        takes_nothing = self.leaving or self.is_twin
        return WorkerState.DRAINING if takes_nothing and self.state is WorkerState.SERVING else self.state

    def is_stalled(self) -> bool:
        """Whether it owes answers and is silent, though it answers questions about itself."""
        return False

    def eject(self) -> None:
        """It is silent: others are preferred until it has shown that it works."""
        if self.context.breakers is not None:
            self.context.breakers.stalled(self.address)

    def give_up(self, silent_seconds: float) -> None:  # noqa: B027  # of some, nothing waits that could be asked elsewhere
        """It has answered nothing for so long: what waits for its answers need not wait for them."""

    def is_idle(self) -> bool:
        """Whether nothing would be cut off if it were closed, as far as is counted here."""
        return True

    def hear(self, instance: Instance | None) -> bool:
        """What it has announced since it was asked. Whether that is something else."""
        if instance is None or instance.instance_id != self.instance.instance_id or instance == self.instance:
            return False
        self.instance, self.traits = instance, traits_of(instance)
        return True

    @abstractmethod
    async def probe(self) -> None:
        """Asks the worker what it is. Raises RpcError or WeirError when it is of no use."""

    @abstractmethod
    async def poll(self) -> None:
        """One question to the worker, every `load_interval_seconds`.

        Raises RpcError when it was not answered, WeirError when the worker is to be given up.
        """

    async def hold(self) -> None:
        """Whatever is to be held open while the worker lives. Returns never, or raises."""
        await asyncio.Event().wait()

    async def _live(self) -> NoReturn:
        await self.probe()
        await self._ask_instance()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.hold(), name=f"{self.kind}-hold")
            tasks.create_task(self._watch_health(), name=f"{self.kind}-health")
            tasks.create_task(self._poll(), name=f"{self.kind}-poll")
        raise AssertionError("a worker's tasks never return")

    def ramp(self, now: float) -> float:
        """(0, 1]: the share of its part that it is to get while it is new."""
        if self._new_since is None:
            return 1.0
        return ramp(now - self._new_since, self.context.settings.slow_start_seconds)

    async def _ask_instance(self) -> None:
        """One that does not know the question is a worker all the same, of which nothing more is known."""
        timeout = self.context.settings.probe_timeout_seconds
        try:
            answer = await InstanceServiceStub(self.channel).GetInstance(GetInstanceRequest(), timeout=timeout)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            answer = GetInstanceResponse()
        if answer.instance != self.instance:
            self.instance, self.traits = answer.instance, traits_of(answer.instance)
            self.context.on_change()

    def lost(self, cause: str) -> WorkerLost:
        """What to raise when the worker is to be given up."""
        return WorkerLost(cause)

    async def _poll(self) -> NoReturn:
        """One unanswered question says little; none answered for long is a worker that hangs, though nobody waits."""
        clock, settings = self.context.clock, self.context.settings
        answered_at = clock.monotonic()
        while True:
            try:
                await self.poll()
                answered_at = clock.monotonic()
                if self.context.breakers is not None and not self.is_stalled():
                    self.context.breakers.answered_probe(self.address)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    answered_at = clock.monotonic()  # a refusal is an answer; a lost connection ends the health watch
                else:
                    self._note_silence(clock.monotonic() - answered_at)
            await clock.sleep(settings.load_interval_seconds)

    def _note_silence(self, seconds: float) -> None:
        """It is not waited for any longer, and after a while more it is lost. Raises WorkerLost."""
        settings = self.context.settings
        if seconds > settings.stall_seconds:
            self.give_up(seconds)
            self.eject()
        if seconds > settings.no_progress_seconds:
            raise self.lost(f"it has answered nothing for {settings.no_progress_seconds:g} s")

    async def _watch_health(self) -> None:
        """Serving or draining as the worker itself says. Its load plays no part."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=self.service)):
            serving = answer.status == health_pb2.HealthCheckResponse.SERVING
            self._set_state(WorkerState.SERVING if serving else WorkerState.DRAINING, "its health says so")
        raise WorkerLost("the worker ended the health watch")

    def _set_state(self, state: WorkerState, cause: str) -> None:
        if state is self.state:
            return
        self.since = self.context.clock.monotonic()
        self.state = state
        if state is WorkerState.DOWN:
            self._is_up = False
        elif state is WorkerState.SERVING and not self._is_up:
            self._begin_ramp()
        get_logger().info("worker_state", kind=self.kind, address=self.address, state=state.value, cause=cause)
        self.context.on_change()

    def _begin_ramp(self) -> None:
        starting = self.since - self.context.started_at < self.context.settings.slow_start_seconds
        self._new_since = None if starting and not self._returns else self.since
        self._is_up = self._returns = True


def _cause(errors: BaseExceptionGroup[WeirError | grpc.RpcError]) -> str:
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    error = from_rpc_error(first) if isinstance(first, grpc.RpcError) else first
    assert isinstance(error, WeirError)
    return error.message
