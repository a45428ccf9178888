"""A fake worker in a process of its own, served as real ones are: health, drain, signals and all.

python -m chaos.churn.worker        with WEIR_CHURN_KIND, WEIR_CHURN_PORT, …
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from pydantic_settings import SettingsConfigDict

from fakes import executor, postprocess, tokenizer
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.tokenizer import FakeTokenizer
from weir.executor.v1.executor_pb2_grpc import add_ExecutorServiceServicer_to_server
from weir.postprocess.v1.postprocess_pb2_grpc import add_PostprocessServiceServicer_to_server
from weir.tokenizer.v1.tokenizer_pb2_grpc import add_TokenizerServiceServicer_to_server
from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers, run
from weir_chassis.settings import ServiceSettings, load_settings

Kind = Literal["executor", "tokenizer", "postprocess"]


class WorkerSettings(ServiceSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="WEIR_CHURN_")

    kind: Kind = "executor"
    # Of an executor, between two tokens.
    step_seconds: float = 0.02


@asynccontextmanager
async def build(settings: WorkerSettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    match settings.kind:
        case "executor":
            fake = FakeExecutor(step_seconds=settings.step_seconds)
            added = Registration(add_ExecutorServiceServicer_to_server, fake, executor.NAME)

            async def drain() -> None:
                """As a real one does: what runs is finished, and then the stream is over."""
                while fake.live:
                    await asyncio.sleep(0.01)
                fake.crash.crash()

            yield Servicers([added], drain=drain)
        case "tokenizer":
            yield Servicers([Registration(add_TokenizerServiceServicer_to_server, FakeTokenizer(), tokenizer.NAME)])
        case "postprocess":
            added = Registration(add_PostprocessServiceServicer_to_server, FakePostprocess(), postprocess.NAME)
            yield Servicers([added])


def serve() -> int:
    kind = load_settings(WorkerSettings).kind
    return run(ServiceDefinition(name=kind, settings=WorkerSettings, build=build))


if __name__ == "__main__":
    sys.exit(serve())
