"""What a process and its children have used, and how one is started and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_END_SECONDS = 10.0


def cpu_seconds(pids: Sequence[int]) -> float:
    """Of all their threads that live, to the nanosecond: the kernel's ticks are too coarse for a run of seconds."""
    return sum(_thread_seconds(stat) for pid in pids for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def _thread_seconds(schedstat: Path) -> float:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        return int(schedstat.read_text().split()[0]) / 1e9
    return 0.0


def resident_mib(pids: Sequence[int]) -> float:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


@contextmanager
def started(
    command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process of this bench, ended with all its children."""
    with log.open("a") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(variables or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def told(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The one line that a mock prints when it serves."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended early: {log.read_text(errors='replace')[-500:]}"
    return dict(json.loads(line))
