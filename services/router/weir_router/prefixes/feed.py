"""Executors' KV events → what is known of their prefixes, for as long as some policy wants to know.

Where there is NATS, executors are heard there, all by one follower. One that is not heard there (it has no NATS, or
tells under another name) is watched by its own `WatchKvEvents`, and so is everybody where there is none. An executor
that is down is forgotten; one that comes back tells anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn

import grpc

from weir.executor.v1.executor_pb2 import WatchKvEventsRequest
from weir_chassis.broker import Broker
from weir_chassis.channel import cancelling
from weir_chassis.errors import WeirError
from weir_chassis.kv_events.follower import KvEventFollower
from weir_chassis.kv_events.watch import KvEventWatch
from weir_chassis.kv_events.wire import Source
from weir_chassis.server import Chassis
from weir_chassis.status import from_rpc_error
from weir_chassis.telemetry import get_logger
from weir_router.fleet.fleet import Fleet
from weir_router.fleet.views import WorkerState
from weir_router.prefixes.prefixes import Prefixes
from weir_router.regions import NO_CLIENT

SERVICE: Final = "executor"
# How late an executor that has come, or a policy that has been configured, is noticed.
_TICK_SECONDS: Final = 0.25
# Two heartbeats on the bus, and then some: who is not heard by then does not tell there.
BUS_SECONDS: Final = 5.0
# Between two calls to an executor that ends them; twice as long each time.
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.25, 30.0


class PrefixFeed:
    """`wanted` says whether anybody looks at prefixes now: following them costs both sides CPU."""

    def __init__(
        self,
        fleet: Fleet,
        prefixes: Prefixes,
        broker: Broker | None,
        chassis: Chassis,
        wanted: Callable[[], bool],
        *,
        bus_seconds: float = BUS_SECONDS,
    ) -> None:
        self._fleet, self._prefixes, self._wanted = fleet, prefixes, wanted
        self._clock, self._random = chassis.clock, chassis.random
        self._follower = _follower(broker, prefixes, chassis) if broker is not None else None
        self._bus_seconds = bus_seconds
        self._following: asyncio.Task[None] | None = None
        self._watches: dict[str, asyncio.Task[NoReturn]] = {}
        self._alive_since: dict[str, float] = {}

    async def run(self) -> NoReturn:
        """For ever. All that it starts ends with it."""
        try:
            while True:
                await self._adjust()
                await self._clock.sleep(_TICK_SECONDS)
        finally:
            await self._end(list(self._watches))
            await self._unfollow()

    async def _adjust(self) -> None:
        """Starts and ends what the fleet, the bus and the policies of now ask for."""
        wanted = self._wanted()
        for task in (*self._watches.values(), *([self._following] if self._following else [])):
            if task.done():
                task.result()  # none of them ends but by a bug, which is raised here
        if wanted and self._follower is not None and self._following is None:
            self._following = asyncio.create_task(self._follower.run(), name="follow_executors")
        if not wanted:
            await self._unfollow()
        to_watch = self._to_watch() if wanted else set()
        await self._end([address for address in self._watches if address not in to_watch])
        for address in to_watch - self._watches.keys():
            self._watches[address] = asyncio.create_task(self._watch(address), name=f"watch_kv_events {address}")

    def _to_watch(self) -> set[str]:
        """Executors that are there, and have had time to be heard on the bus if there is one."""
        now, heard = self._clock.monotonic(), self._heard()
        alive = {view.address for view in self._fleet.snapshot().executors if view.state is not WorkerState.DOWN}
        self._alive_since = {address: self._alive_since.get(address, now) for address in alive}
        patience = 0.0 if self._follower is None else self._bus_seconds
        return {address for address in alive - heard if now - self._alive_since[address] >= patience}

    def _heard(self) -> set[str]:
        """Who tells on the bus."""
        return {source.name for source in self._follower.ages()} if self._follower is not None else set()

    async def _watch(self, address: str) -> NoReturn:
        watch, pause = KvEventWatch(Source(SERVICE, address), self._prefixes), _MIN_PAUSE_SECONDS
        try:
            while True:
                known = watch.from_sequence
                try:
                    await self._follow(address, watch)
                except (grpc.RpcError, WeirError) as error:
                    self._note_end(address, error)
                # A call that has told something was worth having.
                pause = _MIN_PAUSE_SECONDS if watch.from_sequence != known else min(2 * pause, _MAX_PAUSE_SECONDS)
                await self._clock.sleep(pause * self._random.uniform(0.5, 1.0))
        finally:
            # Whom the bus tells of by now is not forgotten because of that.
            if address not in self._heard():
                watch.forget()

    async def _follow(self, address: str, watch: KvEventWatch) -> None:
        request = WatchKvEventsRequest(epoch=watch.epoch, from_sequence=watch.from_sequence)
        with cancelling(self._fleet.executor(address, NO_CLIENT).stub.WatchKvEvents(request)) as call:
            await watch.follow(call)

    def _note_end(self, address: str, error: grpc.RpcError | WeirError) -> None:
        explained = from_rpc_error(error) if isinstance(error, grpc.RpcError) else error
        get_logger().info("kv_event_watch_ended", executor=address, cause=explained.message)

    async def _unfollow(self) -> None:
        if self._following is not None:
            task, self._following = self._following, None
            await _cancel([task])
            for address in self._prefixes.index.executors - self._watches.keys():
                self._prefixes.lost(Source(SERVICE, address))

    async def _end(self, addresses: list[str]) -> None:
        await _cancel([self._watches.pop(address) for address in addresses])


def _follower(broker: Broker, prefixes: Prefixes, chassis: Chassis) -> KvEventFollower:
    return KvEventFollower(
        broker, [SERVICE], prefixes, metrics=chassis.metrics, clock=chassis.clock, random=chassis.random
    )


async def _cancel(tasks: list[asyncio.Task[NoReturn]] | list[asyncio.Task[None]]) -> None:
    """Ends them and waits for that. What one of them has failed with is ours to raise."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result
