"""Makes a peer's virtual environment once, with a line of progress per step, and says why when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.peers import Environment, Step

# Environments outlive a run: they are gigabytes. Git ignores the place.
ROOT = Path(os.environ.get("WEIR_BENCH_PEERS", ".weir/peers")).absolute()
_STEP_SECONDS = 3600.0  # building llama.cpp on two cores takes half of it
_LAST_CHARACTERS = 300  # of what a failed command said


def with_bench() -> dict[str, str]:
    """This process's variables for a child that runs a module of `bench`."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


class MissingPeerError(Exception):
    """The peer cannot take part here; the message says why."""


def python_of(environment: Environment, root: Path = ROOT) -> Path:
    """The interpreter of the environment, made now unless it is there. Raises MissingPeerError."""
    directory = root / environment.name
    steps = environment.steps(directory, sys.executable)
    stamp = directory / ".installed"
    if not stamp.is_file() or stamp.read_text() != _written(steps):
        for number, step in enumerate(steps, 1):
            _run(step, f"{environment.name} {number}/{len(steps)}: {step.label}")
        stamp.write_text(_written(steps))
    return directory / "bin/python"


def _written(steps: list[Step]) -> str:
    """What the stamp holds: an environment whose steps have changed is installed again."""
    return "\n".join(step.label for step in steps)


def _run(step: Step, progress: str) -> None:
    print(f"  installing {progress}", flush=True)
    began = time.monotonic()
    try:
        done = subprocess.run(step.command, capture_output=True, text=True, timeout=_STEP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingPeerError(f"{step.label}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-_LAST_CHARACTERS:]
        raise MissingPeerError(f"{step.label} ended with code {done.returncode}: {said}")
    print(f"  installed  {progress} in {time.monotonic() - began:.0f} s", flush=True)
