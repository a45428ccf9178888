"""`make bench-kvstore`: what the store moves and finds, beside what the machine can do, in the same run (two minutes).

One host       loads and puts by reference beside one memcpy of the same bytes between two buffers
Disk           sequential reads of the tier beside O_DIRECT, and fio where there is one, over the same file
Across hosts   loads by value through TCP, two processes, beside raw gRPC chunks and a bare socket
Redis          reads of the tier beside a bare socket that pipelines the same commands
Lookups        a prefix of a thousand blocks, inside the service and through gRPC
Eviction       every policy's hit rate on the same traces

Of each pair both are measured in turn, round by round, and the median of the rounds' ratios counts.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from bench import disk_tier, redis_tier
from bench.kvstore import eviction, lookup, one_host, wire
from bench.report import Figures, print_table
from weir_chassis.malloc import keep_freed_memory


def measure(scratch: Path) -> Figures:
    keep_freed_memory()  # as every service does
    figures = Figures()
    for part in (one_host.measure, wire.measure, redis_tier.measure, lookup.measure):
        figures.update(uvloop.run(part(scratch)))
    figures.update(asyncio.run(asyncio.to_thread(disk_tier.measure, scratch)))
    _print(figures)
    figures.update(eviction.measure())
    return figures


def _print(figures: Figures) -> None:
    rows = [[name, *figures.cells(name)] for name in figures.ratios]
    print_table("the KV store beside what the machine can do", ["", "ratio", "goal", ""], rows)
    print_table("measured", ["", ""], [[name, f"{value:.3g}"] for name, value in figures.measured.items()])
    print_table("missing", ["", ""], [list(pair) for pair in figures.missing.items()])
