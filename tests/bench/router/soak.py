"""`make bench-router-soak`: the router's memory over many requests, which is to stay where the first have put it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from bench.report import Figures
from bench.router.contenders import WEIR
from bench.router.load import Heard, clients
from bench.router.pace import write_pace
from bench.router.processes import resident_mib
from bench.router.scenarios import SHORT

_WARM_REQUESTS = 10_000  # after which memory is to stay as it is
# Of the last size, what the first one is to be: an allocator's pages come and go.
_FLAT = 0.95
# Of the whole run. One that takes longer fails.
_LONGEST_SECONDS = 330.0


def measure(scratch: Path, requests: int) -> Figures:
    """Prints the router's size after each ten thousand. Raises TimeoutError when so many are not answered in time."""
    return figures_of(uvloop.run(_sizes(scratch, requests)))


def figures_of(sizes: dict[int, float]) -> Figures:
    """`sizes`: MiB after so many requests, in the order of time."""
    warm, end = next(iter(sizes.values())), next(reversed(sizes.values()))
    return Figures(
        ratios={"warm_memory_of_end": warm / end},
        goals={"warm_memory_of_end": _FLAT},
        measured={"warm_mib": warm, "end_mib": end, "requests": next(reversed(sizes))},
    )


async def _sizes(scratch: Path, requests: int) -> dict[int, float]:
    write_pace(scratch / "pace", SHORT.pace)
    sizes: dict[int, float] = {}
    async with (
        asyncio.timeout(_LONGEST_SECONDS),
        WEIR.open(scratch) as ready,
        clients(ready.door, SHORT.clients, SHORT.tokens, stagger=0, pause=0) as heard,
    ):
        heard.counting = True
        for wanted in range(_WARM_REQUESTS, requests + 1, _WARM_REQUESTS):
            await _until(heard, wanted)
            sizes[wanted] = resident_mib(ready.router)
            print(f"  {wanted:8d} requests: {sizes[wanted]:.1f} MiB", flush=True)
    return sizes


async def _until(heard: Heard, requests: int) -> None:
    while heard.requests < requests:
        await asyncio.sleep(0.1)
    heard.first_tokens.clear()
    heard.delays.clear()
