"""What a bus must be good for: a router hears who is there, whoever of the two came first and whatever happens between.

Each check takes a bus and nothing else, on which others may announce themselves too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Final

from contract.kv_bus_contract import AbstractConnection, Bus, running, until
from weir.fleet.v1.instance_pb2 import Instance
from weir_chassis.broker import Session
from weir_chassis.clock import SystemClock
from weir_chassis.fleet.announcer import Announcer
from weir_chassis.fleet.identity import Identity
from weir_chassis.fleet.wire import lease_seconds
from weir_chassis.health import Health
from weir_router.fleet.announcements import Announcements

_LONG_SECONDS, _SHORT_SECONDS = 3600.0, 0.4
Check = Callable[[Bus], Awaitable[None]]


class Worker:
    def __init__(self, connection: AbstractConnection, lease_seconds: float = _LONG_SECONDS) -> None:
        self.connection, self.health = connection, Health()
        self.identity = Identity("executor", self.health, SystemClock(), Random())
        self.identity.place(address="e:1", region="eu-west")
        self.announcer = Announcer(connection.broker, self.identity, SystemClock(), lease_seconds=lease_seconds)


class Listener:
    def __init__(self, connection: AbstractConnection) -> None:
        self.connection, self.changes = connection, 0
        self.announcements = Announcements(connection.broker, SystemClock(), self._note)

    def _note(self) -> None:
        self.changes += 1

    def knows(self, worker: Worker) -> Instance | None:
        announced = self.announcements.announced
        announced.forget((), SystemClock().monotonic())
        known = {one.instance.instance_id: one.instance for one in announced.heard()}
        return known.get(worker.identity.instance().instance_id)


@asynccontextmanager
async def _worker(bus: Bus, lease_seconds: float = _LONG_SECONDS) -> AsyncIterator[Worker]:
    worker = Worker(bus.connect(), lease_seconds)
    async with running(worker.announcer.run()):
        yield worker
    await worker.connection.close()


@asynccontextmanager
async def _listener(bus: Bus) -> AsyncIterator[Listener]:
    listener = Listener(bus.connect())
    async with running(listener.announcements.run()):
        yield listener
    await listener.connection.close()


async def check_a_worker_that_comes_later_is_heard_of(bus: Bus) -> None:
    async with _listener(bus) as listener, _worker(bus) as worker:
        await until(lambda: listener.knows(worker) == worker.identity.instance())


async def check_one_that_was_there_before_is_asked(bus: Bus) -> None:
    """Its next heartbeat is a quarter of an hour away."""
    async with _worker(bus) as worker, _listener(bus) as first:
        await until(lambda: first.knows(worker) is not None)
        async with _listener(bus) as second:
            await until(lambda: second.knows(worker) is not None)


async def check_changes_and_drains_are_heard_of_at_once(bus: Bus) -> None:
    async with _listener(bus) as listener, _worker(bus) as worker:
        await until(lambda: listener.knows(worker) is not None)
        worker.identity.describe(Instance(capacity=7))
        await until(lambda: (known := listener.knows(worker)) is not None and known.capacity == 7)
        worker.health.stop()
        await until(lambda: (known := listener.knows(worker)) is not None and known.draining)


async def check_one_that_leaves_is_gone_at_once(bus: Bus) -> None:
    async with _listener(bus) as listener, _worker(bus) as worker:
        await until(lambda: listener.knows(worker) is not None)
        changes = listener.changes
        await worker.announcer.leave()
        await until(lambda: listener.knows(worker) is None)
        assert listener.changes > changes


async def check_one_that_dies_is_gone_with_its_lease(bus: Bus) -> None:
    async with _listener(bus) as listener:
        async with _worker(bus, _SHORT_SECONDS) as worker:
            await until(lambda: listener.knows(worker) is not None)
            assert lease_seconds(worker.identity.instance()) == _SHORT_SECONDS
        await until(lambda: listener.knows(worker) is None)


async def check_after_an_outage_on_either_side_all_is_heard_again(bus: Bus) -> None:
    async with _listener(bus) as listener, _worker(bus) as worker:
        await until(lambda: listener.knows(worker) is not None)
        for end in (listener.connection, worker.connection):
            await end.lose()
            worker.identity.describe(Instance(capacity=worker.identity.instance().capacity + 1))
            await end.restore()
            await until(lambda: listener.knows(worker) == worker.identity.instance())


async def check_what_is_no_instance_is_passed_over(bus: Bus) -> None:
    async with _listener(bus) as listener, AsyncExitStack() as stack:
        stranger = bus.connect()
        stack.push_async_callback(stranger.close)

        async def babble(session: Session) -> None:
            for payload in (b"", b"\xff" * 100, Instance(address="e:1").SerializeToString()):
                await session.publish("weir.fleet.executor.x", payload)
            await asyncio.Event().wait()

        await stack.enter_async_context(running(stranger.broker.run_in_sessions(babble)))
        async with _worker(bus) as worker:
            await until(lambda: listener.knows(worker) is not None)
        assert not any(one.instance.instance_id == "" for one in listener.announcements.announced.heard())


CHECKS: Final[list[Check]] = [
    check_a_worker_that_comes_later_is_heard_of,
    check_one_that_was_there_before_is_asked,
    check_changes_and_drains_are_heard_of_at_once,
    check_one_that_leaves_is_gone_at_once,
    check_one_that_dies_is_gone_with_its_lease,
    check_after_an_outage_on_either_side_all_is_heard_again,
    check_what_is_no_instance_is_passed_over,
]
