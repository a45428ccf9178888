"""KV events over a real NATS, and over the double that other tests use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random

import pytest
from pydantic_settings import SettingsConfigDict

from contract import kv_bus_contract
from contract.kv_bus_contract import Bus, Check
from fakes.broker import FakeBroker, FakeBus
from servers import NatsServer
from weir_chassis.clock import SystemClock
from weir_chassis.kv_events import follower, publisher
from weir_chassis.metrics import Metrics
from weir_chassis.nats import NatsConnection
from weir_chassis.settings import ServiceSettings


class _Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_TEST_")


@dataclass
class NatsBus:
    url: str

    def connect(self) -> NatsEnd:
        settings = _Settings.model_validate({"nats_url": self.url})
        return NatsEnd(NatsConnection(settings, "test", Metrics("test"), SystemClock(), Random(0)))


@dataclass
class NatsEnd:
    broker: NatsConnection
    running: asyncio.Task[None] = field(init=False)

    def __post_init__(self) -> None:
        self.running = asyncio.create_task(self.broker.run())

    async def lose(self) -> None:
        await self.close()

    async def restore(self) -> None:
        self.running = asyncio.create_task(self.broker.run())

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


@dataclass
class Doubles:
    bus: FakeBus

    def connect(self) -> Double:
        return Double(self.bus.connect())


@dataclass
class Double:
    broker: FakeBroker

    async def lose(self) -> None:
        self.broker.lose()

    async def restore(self) -> None:
        self.broker.restore()

    async def close(self) -> None:
        self.broker.lose()


@pytest.fixture(params=["nats", "double"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "nats":
        server: NatsServer = request.getfixturevalue("nats")
        yield NatsBus(server.url)
    else:
        yield Doubles(FakeBus())


@pytest.fixture(autouse=True)
def _quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(follower, "SILENCE_SECONDS", 1.0)


@pytest.mark.parametrize("check", kv_bus_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_contract(bus: Bus, check: Check) -> None:
    await check(bus)
