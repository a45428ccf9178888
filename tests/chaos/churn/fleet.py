"""A router and its fake workers as real processes, and the bad luck that befalls the workers.

Nobody is told of an address: workers announce themselves on NATS, each at a port of its own, and the router finds them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random

from servers import free_ports

# What the fleet is made of.
_KINDS = {"executor": 5, "tokenizer": 3, "postprocess": 3}
# Who has been born so long ago can be counted on: a Python process takes a second or two to serve.
_GROWN_SECONDS = 4.0
# A worker that is stopped answers nothing for so long before it is killed.
_STOPPED_SECONDS = 3.0
# Who is not heard of for so long is gone.
_LEASE_SECONDS = 3.0
_TESTS = Path(__file__).parents[2]


class Death(Enum):
    """How a worker goes."""

    KILL = "kill -9"
    DRAIN = "SIGTERM"
    STOP = "SIGSTOP"


@dataclass
class Worker:
    """A place for one process after another: at one address, or, as it `moves`, each at a new one.

    Times are monotonic seconds.
    """

    kind: str
    port: int
    log: Path
    # Further ones, by their names.
    settings: Mapping[str, str] = field(default_factory=dict)
    moves: bool = False
    process: subprocess.Popen[bytes] | None = None
    born_at: float = 0.0
    # It has been told to go.
    is_going: bool = False
    stopped_at: float | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None and not self.is_going

    def start(self, now: float) -> None:
        if self.moves:
            (self.port,) = free_ports(1)
        told = {"KIND": self.kind, "PORT": str(self.port), "DRAIN_SECONDS": "2", **self.settings}
        env = {f"WEIR_CHURN_{name}": value for name, value in told.items()}
        self.process = start_python("chaos.churn.worker", env, self.log)
        self.born_at, self.stopped_at, self.is_going = now, None, False

    def die(self, how: Death, now: float) -> None:
        assert self.process is not None, "it was never born"
        self.is_going = True
        match how:
            case Death.KILL:
                self.process.kill()
            case Death.DRAIN:
                self.process.terminate()
            case Death.STOP:
                self.process.send_signal(signal.SIGSTOP)
                self.stopped_at = now

    def tidy(self, now: float) -> None:
        """A process that was stopped is killed in the end: it would hang for ever."""
        if self.process is not None and self.stopped_at is not None and now - self.stopped_at > _STOPPED_SECONDS:
            self.process.kill()
            self.process.wait()
            self.stopped_at = None

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Fleet:
    """`router` is the address of its door, `metrics` that of its figures."""

    workers: list[Worker]
    router: str
    metrics: str
    random: Random
    deaths: Counter[str] = field(default_factory=Counter)
    births: int = 0

    def churn(self, now: float) -> None:
        """One second's bad luck: one dies, and one that was dead is born again. Executors die most often."""
        for worker in self.workers:
            worker.tidy(now)
        dead = [worker for worker in self.workers if worker.process is not None and worker.process.poll() is not None]
        if dead:
            self.random.choice(dead).start(now)
            self.births += 1
        kind = self.random.choices(list(_KINDS), weights=[6, 1, 1])[0]
        up = [worker for worker in self.workers if worker.kind == kind and worker.is_up]
        grown = [worker for worker in up if now - worker.born_at > _GROWN_SECONDS]
        if len(grown) > 1:  # of a kind of which nobody is left, nothing is to be learnt
            how = self.random.choices(list(Death), weights=[2, 2, 1])[0]
            self.random.choice(grown).die(how, now)
            self.deaths[f"{kind} {how.value}"] += 1

    def restore(self, now: float) -> None:
        """Everybody is there again."""
        for worker in self.workers:
            if not worker.is_up:
                worker.end()
                worker.start(now)


@contextmanager
def running_fleet(directory: Path, nats_url: str, seed: int, router: Mapping[str, str]) -> Iterator[Fleet]:
    """The processes, started and not waited for. `router`: further settings of the router."""
    router_port, metrics_port = free_ports(2)
    kinds = [kind for kind, count in _KINDS.items() for _ in range(count)]
    told = {"NATS_URL": nats_url, "ANNOUNCE_LEASE_SECONDS": str(_LEASE_SECONDS)}
    workers = [
        Worker(kind, 0, directory / f"{kind}-{number}.log", told, moves=True) for number, kind in enumerate(kinds)
    ]
    env = {"PORT": str(router_port), "METRICS_PORT": str(metrics_port), "NATS_URL": nats_url, **router}
    with ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.end)
            worker.start(time.monotonic())
        named = {f"WEIR_ROUTER_{name}": value for name, value in env.items()}
        process = start_python("weir_router", named, directory / "router.log")
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield Fleet(workers, f"127.0.0.1:{router_port}", f"127.0.0.1:{metrics_port}", Random(seed))


def start_python(module: str, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A module of ours or of the tests, in a process of its own."""
    path = os.pathsep.join([str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, "PYTHONPATH": path, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
