"""The bare engine beside transformers: contenders take turns on one machine, the best of each one's rounds counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.report import Figures, print_table
from bench.workload import WORKLOADS, decode, mixed

# Whichever of transformers' two ways is the faster one on a workload is the peer there.
PEERS = ("transformers-static", "transformers-continuous")
MEASURED = ("decode", "mixed", "prefill", "shared_prefix")


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    process: subprocess.Popen[str]

    def seconds(self, workload: str, salt: int) -> float:
        assert self.process.stdin is not None
        print(workload, salt, file=self.process.stdin, flush=True)
        return float(json.loads(self._line())["seconds"])

    def _line(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", "ready")):
                return line
        raise RuntimeError(f"{self.name} ended with code {self.process.wait()}")


def measure(directory: Path, rounds: int) -> Figures:
    """Prints the table. Every round has prompts of its own, so that no cache remembers the round before."""
    best: dict[tuple[str, str], float] = {}
    for name in ("weir", *PEERS):  # one at a time in memory: two cores cannot host two engines fairly
        with _running(name, directory) as contender:
            for workload in MEASURED:
                best[name, workload] = min(_seconds(contender, workload, salt) for salt in range(rounds))
                print(f"  {name:<24} {workload:<14} {best[name, workload]:8.2f} s", flush=True)
    return _report(best)


def _seconds(contender: Contender, workload: str, salt: int) -> float:
    seconds = contender.seconds(workload, salt)
    if workload == "decode":  # what the prefill took is another row's figure
        return seconds - contender.seconds("first_token", salt + 1000)
    return seconds


def _report(best: dict[tuple[str, str], float]) -> Figures:
    figures, rows = Figures(), []
    for workload in MEASURED:
        peer = min(PEERS, key=lambda name: best[name, workload])
        ours, theirs = best["weir", workload], best[peer, workload]
        figures.ratios[workload], figures.goals[workload] = theirs / ours, 1.0
        figures.measured[f"{workload}_seconds"] = ours
        rows.append(
            [workload, f"{ours:.2f} s", f"{theirs:.2f} s", peer, f"{theirs / ours:.2f}x", _rate(workload, ours)]
        )
    print_table("Bare engine", ["workload", "weir", "transformers", "its faster way", "ratio", "weir's rate"], rows)
    return figures


def _rate(workload: str, seconds: float) -> str:
    if workload == "decode":
        return f"{1e3 * seconds / (decode(0).output_tokens - 1):.1f} ms/token"
    if workload == "prefill":
        return f"{2048 / seconds:.0f} tokens/s"
    work = mixed(0) if workload == "mixed" else WORKLOADS[workload](0)
    return f"{work.output_tokens / seconds:.0f} tokens/s out"


@contextmanager
def _running(name: str, directory: Path) -> Iterator[Contender]:
    with ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", name, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        contender = Contender(name, process)
        contender._line()
        yield contender
