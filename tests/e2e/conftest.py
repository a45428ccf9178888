"""Real processes: `weir up` as a user runs it, on free ports, with a state directory of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from weir.executor.v1.executor_pb2 import GetLoadRequest, GetLoadResponse
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir_chassis.channel import open_channel
from weir_client.stack import RunningService, read_stack

_START_SECONDS = 90.0
# More than what tests ask needs at once. An executor asks for every page when it starts, which for the default takes as
# long as all the rest of its start.
_KV_CACHE_MIB = "64"

# A shell that starts the tests in the background has them ignore SIGINT, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Stack:
    """A running `weir up`."""

    process: subprocess.Popen[str]
    state: Path

    @property
    def services(self) -> list[RunningService]:
        return read_stack(self.state)

    @property
    def router(self) -> str:
        return self.addresses("router")[0]

    def addresses(self, service: str) -> list[str]:
        return [s.address for s in self.services if s.service == service]

    def pid(self, address: str) -> int:
        return next(s.pid for s in self.services if s.address == address)

    def weir(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """The `weir` command as a user of this stack types it."""
        return run_weir(self.state, *arguments, timeout=timeout)

    def stop(self) -> int:
        """Ctrl-C, then the exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def run_weir(state: Path, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weir_client.cli", *arguments],
        env=os.environ | {"WEIR_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start_stack(state: Path, *arguments: str) -> Stack:
    """`weir up` with these arguments, once it says that it is ready."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "up.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "weir_client.cli", "up", "--port", "0", "--kv-cache-mib", _KV_CACHE_MIB, *arguments],
            env=os.environ | {"WEIR_STATE_DIR": str(state)},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
    stack, deadline = Stack(process, state), time.monotonic() + _START_SECONDS
    while not stack.services:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(state.rglob("*.log")))
            raise AssertionError(f"'weir up' did not get ready:\n{logs}")
        time.sleep(0.05)
    return stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack with two executors and the demo model, shared by the tests that leave it as they found it."""
    running = start_stack(tmp_path_factory.mktemp("stack"), "--executors", "2")
    yield running
    assert running.stop() == 0, (running.state / "up.log").read_text()


async def load_of(address: str) -> GetLoadResponse:
    async with open_channel(address) as channel:
        return await ExecutorServiceStub(channel).GetLoad(GetLoadRequest(), timeout=20)


async def until_idle(addresses: list[str], seconds: float = 10.0) -> None:
    """Every executor back to no request, no sequence, no block in use; or fail with what is left.

    One that was killed has that long to come back, too.
    """
    held: dict[str, object] = {}
    for _ in range(int(seconds / 0.05)):
        held = {address: left for address in addresses if (left := await _held_by(address))}
        if not held:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"still held: {held}")


async def _held_by(address: str) -> GetLoadResponse | grpc.StatusCode | None:
    """The load of an executor that holds something, or why it does not say; None when it holds nothing."""
    try:
        load = await load_of(address)
    except grpc.aio.AioRpcError as error:
        return error.code()
    live = load.running_sequences + load.waiting_requests + load.live_requests + load.live_handoffs
    return load if live or load.free_blocks != load.total_blocks else None


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
