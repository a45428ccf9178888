"""A service small enough to be started as a process by the tests: `python toy_service.py`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic_settings import SettingsConfigDict

from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers, run
from weir_chassis.settings import ServiceSettings, SettingsError

sys.path.insert(0, str(Path(__file__).parents[2]))

from unit.chassis.call_conformance import SERVICE, ScriptServicer, add_script_to_server


class ToySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_TOY_")

    fail_in_build: bool = False
    fail_after_seconds: float = 0.0


class ToyServicer(ScriptServicer):
    def __init__(self) -> None:
        super().__init__()
        self.unary = self._sleep

    async def _sleep(self, request: bytes, context: object) -> bytes:
        await asyncio.sleep(float(request))
        return b"slept"


@asynccontextmanager
async def build(settings: ToySettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    if settings.fail_in_build:
        raise SettingsError("WEIR_TOY_MODEL_DIR: there is nothing")
    if settings.fail_after_seconds:
        chassis.background.start(_fail(settings.fail_after_seconds), name="doomed")
    yield Servicers([Registration(add_script_to_server, ToyServicer(), SERVICE)], models=["m"])


async def _fail(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ValueError("the loop died")


TOY = ServiceDefinition("toy", ToySettings, build)

if __name__ == "__main__":
    sys.exit(run(TOY))
