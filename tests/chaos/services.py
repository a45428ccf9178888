"""The suite's own services as processes, each at an address of its own: started, signalled, started again."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weir_chassis.channel import open_channel

HOST = "127.0.0.1"
DEMO_MODEL = Path(__file__).parents[2] / "deploy/models/demo"
_PATIENCE_SECONDS = 60.0


@dataclass
class Service:
    """One address, at which one process comes after another. `settings`: by the names of the service's variables."""

    name: str
    port: int
    metrics_port: int
    settings: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def start(self) -> None:
        assert self.has_ended, f"{self.name} runs"
        told = {"PORT": str(self.port), "METRICS_PORT": str(self.metrics_port), **self.settings}
        told["EXIT_WITH_PARENT"] = str(os.getpid())
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WEIR_")}
        environment |= {f"WEIR_{self.name}_{name}".upper(): value for name, value in told.items()}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"weir_{self.name}"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: int) -> None:
        assert self.process is not None, f"{self.name} was never started"
        self.process.send_signal(number)

    async def wait(self) -> int:
        """The code that the process ends with."""
        assert self.process is not None, f"{self.name} was never started"
        return await asyncio.to_thread(self.process.wait, _PATIENCE_SECONDS)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def until_serving(self, name: str = "") -> None:
        """The process, or what has this name in its health."""
        async with open_channel(self.address) as channel:
            health, check = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service=name)
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while time.monotonic() < deadline:
                assert not self.has_ended, f"{self.name} has ended:\n{self.log.read_text()[-2000:]}"
                try:
                    answer = await health.Check(check, timeout=1.0, wait_for_ready=True)
                except grpc.RpcError:
                    continue
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                await asyncio.sleep(0.02)
        raise AssertionError(f"{self.name} does not serve:\n{self.log.read_text()[-2000:]}")

    async def metrics(self) -> dict[str, float]:
        """Its own, by name and labels."""

        def read() -> str:
            with urllib.request.urlopen(f"http://{HOST}:{self.metrics_port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())

        text = await asyncio.to_thread(read)
        return {name: float(value) for name, value in re.findall(r"^(weir_\S+) (\S+)$", text, re.MULTILINE)}

    async def leases(self) -> float:
        """What it holds for anybody, streams that live as long as their channel left out."""
        metrics = await self.metrics()
        return sum(
            value
            for name, value in metrics.items()
            if name.startswith(f"weir_{self.name}_leases{{") and 'kind="stream"' not in name
        )


async def until_async(condition: Callable[[], Awaitable[bool]], seconds: float = _PATIENCE_SECONDS) -> None:
    """As `until`, where asking takes a while."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool], seconds: float = _PATIENCE_SECONDS) -> None:
    """Waits until this is so; fails when it does not become so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
