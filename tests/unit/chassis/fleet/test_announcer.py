"""A process is heard of while it is there: by heartbeats, at once when it changes or is asked, and when it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
from structlog.testing import capture_logs

from fakes.broker import FakeBroker, FakeBus
from weir.fleet.v1.instance_pb2 import Instance
from weir_chassis.broker import Message
from weir_chassis.fleet import announcer as announcer_module
from weir_chassis.fleet.announcer import HEARTBEATS_PER_LEASE, Announcer, announced
from weir_chassis.fleet.identity import Identity
from weir_chassis.fleet.wire import ASK, lease_seconds, subject
from weir_chassis.health import Health
from weir_chassis.server import new_chassis
from weir_chassis.settings import ServiceSettings
from weir_chassis.testing import VirtualClock, settle

LEASE_SECONDS = 8.0


class Bench:
    def __init__(self) -> None:
        self.bus, self.clock, self.health = FakeBus(), VirtualClock(), Health()
        self.broker: FakeBroker = self.bus.connect()
        self.identity = Identity("executor", self.health, self.clock, Random(0))
        self.identity.place(address="e:1")
        self.announcer = Announcer(self.broker, self.identity, self.clock, lease_seconds=LEASE_SECONDS)

    @property
    def said(self) -> list[Instance]:
        return [Instance.FromString(each.payload) for each in self.bus.published if each.subject != ASK]


@asynccontextmanager
async def announcing() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.create_task(bench.announcer.run())
    await settle()
    yield bench
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_is_heard_of_several_times_within_each_lease() -> None:
    async with announcing() as bench:
        await bench.clock.advance(LEASE_SECONDS * 3)
        assert len(bench.said) == 3 * HEARTBEATS_PER_LEASE + 1 >= 3 * 3
        assert {(said.address, lease_seconds(said)) for said in bench.said} == {("e:1", LEASE_SECONDS)}
        assert {each.subject for each in bench.bus.published} == {subject(bench.said[0])}
        assert subject(bench.said[0]) == f"weir.fleet.executor.{bench.said[0].instance_id}"


async def test_a_change_is_told_at_once_and_so_is_a_drain() -> None:
    async with announcing() as bench:
        bench.identity.describe(Instance(capacity=5))
        await settle()
        bench.health.stop()
        await settle()
        assert [(said.capacity, said.draining) for said in bench.said] == [(0, False), (5, False), (5, True)]
        await bench.clock.advance(LEASE_SECONDS / HEARTBEATS_PER_LEASE)
        assert len(bench.said) == 4, "and then by heartbeats again"


async def test_whoever_asks_is_answered_at_once() -> None:
    async with announcing() as bench:
        bench.bus.publish(Message(ASK, b""))
        await settle()
        assert len(bench.said) == 2


async def test_one_that_leaves_says_so_and_nothing_afterwards() -> None:
    async with announcing() as bench:
        await bench.announcer.leave()
        assert (bench.said[-1].draining, lease_seconds(bench.said[-1])) == (True, 0.0)
        count = len(bench.said)
        await bench.clock.advance(LEASE_SECONDS)
        assert len(bench.said) == count


async def test_one_that_is_cut_off_does_not_wait_to_be_heard() -> None:
    async with announcing() as bench:
        bench.broker.lose()
        await settle()
        await bench.announcer.leave()
        assert len(bench.said) == 1


async def test_a_lost_session_is_followed_by_another_announcement() -> None:
    async with announcing() as bench:
        bench.broker.lose()
        await bench.clock.advance(LEASE_SECONDS)
        assert len(bench.said) == 1
        bench.broker.restore()
        await settle()
        assert len(bench.said) == 2


async def test_a_process_with_a_broker_is_announced_while_it_serves() -> None:
    chassis, bus = new_chassis("tokenizer"), FakeBus()
    chassis.buses.in_memory = bus.connect()
    async with chassis.background:
        async with announced(_Settings(), chassis):
            await settle()
        leases = [lease_seconds(Instance.FromString(each.payload)) for each in bus.published]
        assert leases == [10.0, 0.0]


async def test_a_process_without_one_is_not() -> None:
    chassis = new_chassis("tokenizer")
    async with announced(_Settings(), chassis):
        assert len(chassis.background) == 0


@pytest.mark.parametrize(
    ("url", "address", "warns"),
    [
        ("nats://10.0.0.1:4222", "127.0.0.1:7001", True),
        ("nats.example:4222", "[::1]:7001", True),
        ("nats://10.0.0.1:4222", "10.0.0.2:7001", False),
        ("nats://localhost:4222,nats://127.0.0.1:4223", "127.0.0.1:7001", False),
    ],
)
async def test_who_announces_what_others_cannot_reach_is_warned(
    url: str, address: str, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chassis = new_chassis("tokenizer")
    chassis.identity.place(address=address)
    monkeypatch.setattr(announcer_module, "open_broker", lambda *_: FakeBus().connect())
    told = _Settings.model_validate({"nats_url": url})
    with capture_logs() as logs:
        async with chassis.background, announced(told, chassis):
            await settle()
    assert any(line["event"] == "announces_loopback" for line in logs) is warns


class _Settings(ServiceSettings, env_prefix="WEIR_TOY_"):
    pass
