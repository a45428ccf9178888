"""The command line of a run that draws what it does: so many operations, in runs of a seed each, any to be repeated."""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable

# By seed and number of operations. Raises where something is wrong.
Go = Callable[[int, int], Counter[str]]


def run(
    description: str | None, go: Go, *, operations: int, runs: int, note: Callable[[Counter[str]], str] | None = None
) -> tuple[Counter[str], float]:
    """What all runs counted, and the seconds that they took. `note`: a line after each, of what was counted so far."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--operations", type=int, default=operations, help=f"in all (default: {operations})")
    parser.add_argument("--seed", type=int, default=None, help=f"repeat one run of this seed (default: {runs}, drawn)")
    asked = parser.parse_args()
    total, started = Counter[str](), time.monotonic()
    seeds = [asked.seed] if asked.seed is not None else [random.randrange(2**32) for _ in range(runs)]
    each = asked.operations // len(seeds)
    for number, seed in enumerate(seeds, 1):
        try:
            total += go(seed, each)
        except BaseException:
            print(f"seed {seed}: failed; repeat with --seed {seed} --operations {each}")
            raise
        if note is not None:
            print(f"{number}/{len(seeds)} seed {seed}: {note(total)}, {time.monotonic() - started:.0f} s", flush=True)
    return total, time.monotonic() - started
