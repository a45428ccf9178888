"""A real NATS and its double, as a bus that one connects to, loses and finds again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random

from pydantic_settings import SettingsConfigDict

from fakes.broker import FakeBroker, FakeBus
from weir_chassis.clock import SystemClock
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
