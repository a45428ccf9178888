"""Threads that copy blocks, each on processors of its own.

Left alone, the kernel wakes two copies on one processor as often as not, because whoever wakes them still runs on the
other, and there they take turns for as long as the load lasts.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

Ts = TypeVarTuple("Ts")
R = TypeVar("R")

# A load copies on two: while one of them waits for memory, the other copies. More are for loads at the same time; as
# many as this are all that a host's memory can feed.
_LEAST, _MOST = 2, 8


class CopyThreads:
    """They start as they are needed, and end with `close`."""

    def __init__(self) -> None:
        self._shares = deque(shares(_processors(), _MOST))
        threads = max(_LEAST, len(self._shares))
        self._executor = ThreadPoolExecutor(threads, "copy-blocks", initializer=self._settle)

    def run(self, function: Callable[[*Ts], R], *args: *Ts) -> asyncio.Future[R]:
        """Cancelled before it has started, it does not start."""
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    def close(self) -> None:
        """What runs may finish."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _settle(self) -> None:
        """The thread that has just started stays on its share. Where that cannot be, it copies all the same."""
        if self._shares:
            with suppress(OSError):  # a processor that was taken from us meanwhile
                os.sched_setaffinity(0, self._shares.popleft())


def shares(processors: Iterable[int], most: int) -> list[set[int]]:
    """At most so many sets of processors, none in two of them. Empty for one processor alone."""
    ordered = sorted(processors)
    if len(ordered) < _LEAST:
        return []
    count = min(most, len(ordered))
    return [set(ordered[first::count]) for first in range(count)]


def _processors() -> set[int]:
    """That this process may run on; none where the system does not tell, or has no such thing."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
