"""A process of its own, because what is frozen stays frozen."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import gc
from weir_chassis.garbage import search_less_for_cycles
search_less_for_cycles()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
found = []
gc.callbacks.append(lambda phase, info: found.append(info["collected"]) if phase == "stop" else None)
kept = [[] for _ in range(10_000)]
assert not found, "it searched while nothing had become garbage"
class Cycle:
    def __init__(self): self.self = self
for _ in range(30_000): Cycle()
assert sum(found) > 0, "cycles are still found"
"""


def test_it_searches_less_and_still_finds_cycles() -> None:
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True, timeout=60)
