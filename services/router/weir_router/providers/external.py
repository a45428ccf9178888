"""A worker that takes whole requests, text to text, and is no service of this suite's: what all kinds of them share.

    DOWN ── probe answers ──► SERVING ── probe fails, connection or key is refused ──► DOWN
                                 │
                                 └── "too many requests, come back in 20 s" ──► it rests, and is not asked meanwhile

`execute` yields a request's events in the order of stream.proto; whoever consumes them need not know who makes them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from weir_chassis.clock import Clock
from weir_chassis.errors import Overloaded, WeirError
from weir_chassis.telemetry import get_logger
from weir_router.delivery import Event
from weir_router.faults.breakers import Breakers
from weir_router.fleet.changes import Changes
from weir_router.fleet.outstanding import Outstanding
from weir_router.fleet.views import ExecutorModel, ExternalView, Traits, WorkerState
from weir_router.providers.config import ExternalTable
from weir_router.providers.errors import Away
from weir_router.regions import Residency
from weir_router.request import ClientRequest

# After a probe has failed: doubling up to the worker's own `probe_seconds`.
_FIRST_PAUSE_SECONDS: Final = 0.25
_MAX_DOUBLINGS: Final = 16


@dataclass(frozen=True, slots=True)
class ExternalContext:
    """What every one of them is given. `jitter` draws from [0, 1); `on_change` is told of every change of a state."""

    clock: Clock
    jitter: Callable[[], float]
    on_change: Callable[[], None]
    changes: Changes
    breakers: Breakers


@dataclass(frozen=True, slots=True)
class ExternalRequest:
    """`model`: the name that clients use here. `revision`: the one that it must be; empty: whichever it is there.

    `prompt_tokens`: as counted or guessed here.

    `left_seconds`: of the client's deadline; None: it has none.
    """

    request: ClientRequest
    model: str
    attempt: int
    prompt_tokens: int
    left_seconds: float | None
    revision: str = ""


class ExternalWorker(ABC):
    kind: str
    # Whether it passes requests on.
    forwards: bool

    def __init__(self, table: ExternalTable, context: ExternalContext):
        self.table, self.context = table, context
        self.address = f"{self.kind}:{table.name}"
        self.outstanding = Outstanding(context.changes)
        self.state, self.since = WorkerState.DOWN, context.clock.monotonic()
        self.models: Mapping[str, ExecutorModel] = {}
        self._rests_until = float("-inf")
        self._fell = asyncio.Event()  # it was there, and is to be looked for
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def abilities(self) -> frozenset[str] | None:
        """As in `ExternalView`."""
        return None

    @property
    def traits(self) -> Traits:
        table = self.table
        price = None if table.price is None else table.price.price()
        return Traits(region=table.region, price=price, weight=table.weight, capacity=table.max_running)

    def permitted(self, residency: Residency) -> Self:
        """Itself, for a request that may go where it is. Raises ResidencyViolated for another."""
        residency.require(self.address, self.traits.region)
        return self

    def view(self, now: float) -> ExternalView:
        return ExternalView(
            self.address,
            self.state,
            self.models,
            self.traits,
            self.forwards,
            self.abilities,
            self.table.overflow,
            self.outstanding.routed_requests,
            self.outstanding.routed_tokens,
            max(0.0, self._rests_until - now),
            self.context.breakers.refusing(self.address),
        )

    @abstractmethod
    def execute(self, asked: ExternalRequest) -> AsyncGenerator[Event, None]:
        """The events of the answer. Closing it ends the call. Raises a WeirError."""

    @abstractmethod
    async def probe(self) -> None:
        """Asks it whether it is there, and what it serves. Raises a WeirError when it is of no use."""

    @abstractmethod
    async def close(self) -> None:
        """Its connections."""

    @contextmanager
    def counted(self) -> Iterator[None]:
        """One call's life."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def idle(self) -> None:
        """Returns when no call lives."""
        await self._idle.wait()

    async def run(self) -> NoReturn:
        """Looks whether it is there, for ever: soon again after it was found away, and then less and less often."""
        tries = 0
        while True:
            await self._look()
            tries = 0 if self.state is WorkerState.SERVING else tries + 1
            longest = self.table.probe_seconds
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(tries, _MAX_DOUBLINGS), longest) if tries else longest
            # Half of the pause is drawn, so that many routers do not probe in step.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause * (0.5 + 0.5 * self.context.jitter())):
                    await self._fell.wait()

    async def _look(self) -> None:
        try:
            await self.probe()
        except Overloaded as error:
            self.note(error)  # busy is there
            self._set_state(WorkerState.SERVING, "it answers")
        except WeirError as error:
            self._set_state(WorkerState.DOWN, error.message)
        else:
            self._set_state(WorkerState.SERVING, "it answers")
            self.context.breakers.answered_probe(self.address)

    def note(self, error: WeirError) -> None:
        """A request has failed there. One that has no room says when it will have."""
        if isinstance(error, Away):
            self._set_state(WorkerState.DOWN, error.message)
        elif isinstance(error, Overloaded) and error.retry_after is not None:
            until = self.context.clock.monotonic() + error.retry_after.total_seconds()
            self._rests_until = max(self._rests_until, until)
            self.context.changes.of_facts += 1

    def _set_state(self, state: WorkerState, cause: str) -> None:
        self._fell.clear()
        if state is WorkerState.DOWN and self.state is WorkerState.SERVING:
            self._fell.set()
        if state is not self.state:
            self.state, self.since = state, self.context.clock.monotonic()
            get_logger().info("worker_state", kind=self.kind, address=self.address, state=state.value, cause=cause)
            self.context.on_change()
