"""A contender in a process of its own, which stays loaded and answers one workload at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders.serving import MARK
from bench.environment import python_of, with_bench
from bench.peers import Contender

# Loading may convert the model or compile it first; the slowest answer known took two minutes.
_LOAD_SECONDS, _ANSWER_SECONDS = 600.0, 900.0
_END_SECONDS = 60.0
_LAST_LINES = 3  # of what a failed contender said


class ContenderError(Exception):
    """The contender died, or hung. The message ends with what it said last."""


@dataclass(slots=True)
class Running:
    contender: Contender
    process: subprocess.Popen[str]
    log: Path

    @property
    def name(self) -> str:
        return self.contender.name

    def seconds(self, workload: str, salt: int) -> float:
        """Of one answer. Raises ContenderError."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # what it died of is said below
            print(json.dumps({"workload": workload, "salt": salt}), file=self.process.stdin, flush=True)
        return float(self.said(_ANSWER_SECONDS)["seconds"])

    def said(self, timeout: float) -> dict[str, Any]:
        """The contender's next message; a library's own lines are passed over."""
        assert self.process.stdout is not None
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                if line.startswith(MARK):
                    return dict(json.loads(line.removeprefix(MARK)))
        finally:
            timer.cancel()
        tail = " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:])
        raise ContenderError(f"{self.name} ended with code {self.process.wait()} or hung: {tail}")

    def kill(self) -> None:
        """With all that it started, save for services, which notice by themselves."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def running(contender: Contender, model_dir: Path, logs: Path) -> Iterator[Running]:
    """Loaded and warm. Raises MissingPeerError when it cannot be installed, ContenderError when it does not start."""
    python = python_of(contender.environment) if contender.environment else Path(sys.executable)
    command = [str(python), "-m", f"bench.contenders.{contender.module}", str(model_dir), *contender.options]
    log = logs / f"{contender.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=with_bench(),
            start_new_session=True,  # so that it and its children are stopped together
        )
    child = Running(contender, process, log)
    try:
        child.said(_LOAD_SECONDS)
        yield child
    finally:
        _end(child)


def _end(child: Running) -> None:
    """Its input ends, and so does it; one that does not is killed."""
    assert child.process.stdin is not None
    with suppress(BrokenPipeError):
        child.process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        child.process.wait(_END_SECONDS)
    child.kill()
    child.process.wait()
