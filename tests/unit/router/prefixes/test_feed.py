"""From executors' own calls, or from the bus, while somebody wants to know; and requests go where their blocks are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from contract.kv_bus_contract import running as in_background
from contract.router_contract import Answer, collect
from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from servers import nats_server
from weir.router.v1 import router_pb2 as pb
from weir_chassis.broker import Broker
from weir_chassis.clock import SystemClock
from weir_chassis.kv_events.publisher import KvEventPublisher
from weir_chassis.kv_events.wire import Source
from weir_chassis.metrics import Metrics
from weir_chassis.nats import NatsConnection
from weir_router.prefixes.feed import PrefixFeed
from weir_router.prefixes.index import PrefixIndex
from weir_router.prefixes.prefixes import Prefixes
from weir_router.prefixes.routed import RoutedPrefixes
from weir_router.settings import RouterSettings

FIRST, SECOND = "memory:executor-0", "memory:executor-1"


def holding() -> FakeExecutor:
    fake = FakeExecutor()
    fake.holds_blocks = True
    return fake


@asynccontextmanager
async def fed(running: Suite, broker: Broker | None = None) -> AsyncIterator[tuple[PrefixIndex, list[bool]]]:
    """An index of the suite's executors, and whether it is wanted: a list of one, for the test to change."""
    index, wanted = PrefixIndex(1000), [True]
    prefixes = Prefixes(index, RoutedPrefixes())
    feed = PrefixFeed(running.fleet, prefixes, broker, running.chassis, lambda: wanted[0], bus_seconds=1.0)
    async with in_background(feed.run()):
        yield index, wanted


def blocks(number: int, count: int) -> list[bytes]:
    return [bytes([number, i]) * 8 for i in range(count)]


async def test_executors_are_watched_while_they_live_and_tell_anew_when_they_come_back() -> None:
    fakes = [holding(), holding()]
    async with suite(executors=fakes) as running, fed(running) as (index, _):
        fakes[0].hold(b"".join(blocks(1, 5)))
        await running.until(lambda: index.leading_blocks(blocks(1, 9)) == {FIRST: 5, SECOND: 0})
        fakes[1].hold(b"".join(blocks(1, 7)))
        await running.until(lambda: index.leading_blocks(blocks(1, 9)) == {FIRST: 5, SECOND: 7})
        fakes[1].crash.crash()
        await running.until(lambda: index.executors == {FIRST})
        fakes[1].restart()
        fakes[1].hold(b"".join(blocks(1, 2)))
        fakes[1].crash.revive()
        await running.until(lambda: index.leading_blocks(blocks(1, 9)) == {FIRST: 5, SECOND: 2})


async def test_nobody_is_watched_while_nobody_wants_to_know() -> None:
    fakes = [holding()]
    async with suite(executors=fakes) as running, fed(running) as (index, wanted):
        await running.until(lambda: bool(index.executors))
        wanted[0] = False
        await running.until(lambda: not index.executors)
        wanted[0] = True
        await running.until(lambda: bool(index.executors))


async def test_who_is_heard_on_the_bus_is_not_watched_and_who_is_not_is(tmp_path: Path) -> None:
    fakes = [holding(), holding()]
    with nats_server(tmp_path) as server:
        settings = RouterSettings.model_validate({"nats_url": server.url})
        async with suite(executors=fakes) as running:
            metrics, clock = Metrics("test"), SystemClock()
            bus = NatsConnection(settings, "test", metrics, clock, running.chassis.random)
            publisher = KvEventPublisher(bus, Source("executor", FIRST), fakes[0].kv_events, metrics, clock)
            async with in_background(bus.run(), publisher.run()), fed(running, bus) as (index, wanted):
                fakes[0].hold(b"".join(blocks(1, 5)))
                fakes[1].hold(b"".join(blocks(1, 3)))
                await running.until(lambda: index.leading_blocks(blocks(1, 9)) == {FIRST: 5}, seconds=30.0)
                await running.until(lambda: index.leading_blocks(blocks(1, 9)) == {FIRST: 5, SECOND: 3}, seconds=30.0)
                await running.until(lambda: (fakes[0].watchers, fakes[1].watchers) == (0, 1), seconds=30.0)
                wanted[0] = False
                await running.until(lambda: not index.executors)


async def ask(running: Suite, text: str) -> Answer:
    answer = Answer()
    await collect(running.router.Generate(pb.GenerateRequest(text=text)), answer)
    answer.check_complete()
    return answer


async def test_requests_that_share_a_prefix_go_where_it_is_and_others_elsewhere(tmp_path: Path) -> None:
    """Through the router's own door: what it was told, and what it has just routed."""
    config = tmp_path / "routing.toml"
    config.write_text('[defaults]\npolicy = "prefix_aware"\n[defaults.prefix_aware]\nexplore = 0.0\njitter = 0.0\n')
    fakes = [holding(), holding()]
    law, poem = "the law says that " * 20, "a poem begins so: " * 20
    async with suite(executors=fakes, config_file=config) as running:
        first = await ask(running, law + "one")
        other = await ask(running, poem + "one")
        for _ in range(4):
            again = await ask(running, law + "two")
            assert again.receipt.worker == first.receipt.worker
            assert again.receipt.policy == "prefix_aware"
            assert again.receipt.engine_cached_tokens >= 300
            assert again.receipt.scores[0].terms["cached_tokens"] >= 300
        assert (await ask(running, poem + "three")).receipt.worker == other.receipt.worker
        # Two at once of a prompt that nobody holds: the second is expected to find what the first leaves.
        third = "nobody has seen this. " * 20
        both = await asyncio.gather(ask(running, third), ask(running, third))
        known = [max(score.terms["cached_tokens"] for score in answer.receipt.scores) for answer in both]
        assert min(known) == 0
        assert max(known) >= 400
