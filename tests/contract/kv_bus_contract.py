"""What a bus must be good for: whoever follows a source over it knows what the source holds, whatever happens between.

Each check takes a bus and nothing else. Heartbeats are quick there, so that what is lost is noticed quickly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any, Final, Protocol

from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.broker import Broker
from weir_chassis.clock import Clock, SystemClock
from weir_chassis.kv_events import blocks
from weir_chassis.kv_events.blocks import HeldBlocks, KvEventLog, new_log
from weir_chassis.kv_events.follower import KvEventFollower
from weir_chassis.kv_events.publisher import KvEventPublisher
from weir_chassis.kv_events.wire import Source
from weir_chassis.metrics import Metrics

_PATIENCE_SECONDS: Final = 20.0


class Bus(Protocol):
    """A bus with one more connection for each that is asked for."""

    def connect(self) -> AbstractConnection: ...


class AbstractConnection(Protocol):
    @property
    def broker(self) -> Broker: ...

    async def lose(self) -> None:
        """The session ends, and no other begins before `restore`."""
        ...

    async def restore(self) -> None: ...

    async def close(self) -> None: ...


Check = Callable[[Bus], Awaitable[None]]


class Known:
    """A consumer that remembers everything."""

    def __init__(self) -> None:
        self.held: dict[Source, HeldBlocks] = {}
        self.resets = 0

    def reset(self, source: Source) -> None:
        self.resets += 1
        self.held[source] = HeldBlocks()

    def apply(self, source: Source, events: Sequence[KvEvent]) -> None:
        for event in events:
            self.held[source].apply(event)

    def lost(self, source: Source) -> None:
        self.held.pop(source, None)


def name(number: int) -> bytes:
    return number.to_bytes(16, "little")


def stored(first: int, count: int = 1, tier: str = "ram") -> list[KvEvent]:
    return list(blocks.stored([name(i) for i in range(first, first + count)], b"", tier=tier, namespace=name(7)))


def removed(*numbers: int, tier: str = "ram") -> list[KvEvent]:
    return list(blocks.removed([name(i) for i in numbers], tier=tier, namespace=name(7)))


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result


def publisher(connection: AbstractConnection, source: Source, log: KvEventLog) -> KvEventPublisher:
    return KvEventPublisher(connection.broker, source, log, Metrics("test"), SystemClock())


def follower(connection: AbstractConnection, known: Known, clock: Clock | None = None) -> KvEventFollower:
    return KvEventFollower(
        connection.broker,
        ["executor", "kvstore"],
        known,
        metrics=Metrics("test"),
        clock=clock or SystemClock(),
        random=Random(0),
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def agrees(known: Known, source: Source, log: KvEventLog) -> Callable[[], bool]:
    """Whether all that the log's source holds is known, and nothing else."""
    held = log._held
    assert isinstance(held, HeldBlocks)
    return lambda: source in known.held and known.held[source]._held == held._held


SOURCE = Source("kvstore", "127.0.0.1:7700")


@asynccontextmanager
async def followed(
    bus: Bus, log: KvEventLog, source: Source = SOURCE
) -> AsyncIterator[tuple[Known, AbstractConnection, AbstractConnection]]:
    """One source and one follower; what it knows, and both connections, the source's first."""
    known = Known()
    async with AsyncExitStack() as stack:
        theirs, ours = bus.connect(), bus.connect()
        stack.push_async_callback(theirs.close)
        stack.push_async_callback(ours.close)
        await stack.enter_async_context(running(publisher(theirs, source, log).run(), follower(ours, known).run()))
        yield known, theirs, ours


async def check_what_happens_is_heard(bus: Bus) -> None:
    log = new_log(1, 1000)
    log.append(stored(1, 5))
    async with followed(bus, log) as (known, _, _):
        await until(agrees(known, SOURCE, log))
        for number in range(10, 20):
            log.append([*stored(number, 3, tier="disk"), *removed(number)])
            await asyncio.sleep(0)
        log.append([blocks.cleared(tier="ram")])
        await until(agrees(known, SOURCE, log))
        assert known.resets == 1


async def check_a_large_source_is_told_in_pieces(bus: Bus) -> None:
    log = new_log(1, 1000)
    log.append(stored(1, 100_000))
    log.append(removed(*range(5, 100_000, 7)))
    async with followed(bus, log) as (known, _, _):
        await until(agrees(known, SOURCE, log))
        assert known.resets == 1


async def check_a_follower_that_was_away_goes_on_where_it_stopped(bus: Bus) -> None:
    log = new_log(1, 1000)
    log.append(stored(1, 5))
    async with followed(bus, log) as (known, _, ours):
        await until(agrees(known, SOURCE, log))
        await ours.lose()
        log.append([*stored(10), *removed(3)])
        await asyncio.sleep(0.05)
        await ours.restore()
        await until(agrees(known, SOURCE, log))
        assert known.resets == 1, "what it missed was remembered"


async def check_a_follower_that_was_away_for_too_long_starts_anew(bus: Bus) -> None:
    log = new_log(1, 4)
    log.append(stored(1, 3))
    async with followed(bus, log) as (known, _, ours):
        await until(agrees(known, SOURCE, log))
        await ours.lose()
        for number in range(10, 30):
            log.append(stored(number))
        await asyncio.sleep(0.05)
        await ours.restore()
        await until(agrees(known, SOURCE, log))
        assert known.resets == 2


async def check_a_source_that_was_away_is_asked_for_what_happened_meanwhile(bus: Bus) -> None:
    log = new_log(1, 1000)
    async with followed(bus, log) as (known, theirs, _):
        await until(agrees(known, SOURCE, log))
        await theirs.lose()
        log.append([*stored(10, 3), *removed(11)])
        await theirs.restore()
        await until(agrees(known, SOURCE, log))
        log.append(stored(20))
        await until(agrees(known, SOURCE, log))
        assert known.resets == 1


async def check_a_source_that_restarts_is_void_and_told_anew(bus: Bus) -> None:
    log = new_log(1, 1000)
    log.append(stored(1, 5))
    known, theirs, ours, again = Known(), bus.connect(), bus.connect(), bus.connect()
    async with running(follower(ours, known).run()):
        async with running(publisher(theirs, SOURCE, log).run()):
            await until(agrees(known, SOURCE, log))
        reborn = new_log(3, 1000)
        reborn.append(stored(3, 1))
        async with running(publisher(again, SOURCE, reborn).run()):
            await until(agrees(known, SOURCE, reborn))
            assert known.resets == 2
    for connection in (theirs, ours, again):
        await connection.close()


async def check_sources_and_followers_do_not_disturb_one_another(bus: Bus) -> None:
    sources = [Source("executor", "10.0.0.1:7701"), Source("executor", "10.0.0.1:7702"), SOURCE]
    logs = [new_log(epoch, 1000) for epoch in (1, 3, 5)]
    for number, log in enumerate(logs):
        log.append(stored(100 * number, 10))
    knowns = [Known(), Known()]
    connections = [bus.connect() for _ in range(5)]
    publishers = [publisher(connections[i], source, logs[i]) for i, source in enumerate(sources)]
    followers = [follower(connections[3 + i], known) for i, known in enumerate(knowns)]
    async with running(*(one.run() for one in publishers), *(one.run() for one in followers)):
        for number in range(5):
            logs[number % 3].append(stored(1000 + number))
            await asyncio.sleep(0.01)
        for known in knowns:
            for source, log in zip(sources, logs, strict=True):
                await until(agrees(known, source, log))
            assert known.resets == 3
    for connection in connections:
        await connection.close()


async def check_a_source_that_is_silent_for_too_long_is_lost(bus: Bus) -> None:
    log = new_log(1, 1000)
    log.append(stored(1))
    async with followed(bus, log) as (known, theirs, _):
        await until(agrees(known, SOURCE, log))
        await theirs.lose()
        await until(lambda: SOURCE not in known.held)
        await theirs.restore()
        await until(agrees(known, SOURCE, log))


CHECKS: Final[Sequence[Check]] = [value for name, value in sorted(globals().items()) if name.startswith("check_")]
