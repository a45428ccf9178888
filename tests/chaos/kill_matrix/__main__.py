"""`make kill-matrix`: one row for each cell, and a summary."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from chaos.kill_matrix.cells import Outcome, all_cells, make_streams, play
from chaos.kill_matrix.fleet import running_fleet
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel


async def main() -> int:
    print(f"{'worker':12} {'fault':8} {'when':8} {'stream':7} struck at  output       moves  seconds  leases")
    outcomes: list[Outcome] = []
    with TemporaryDirectory() as directory:
        async with running_fleet(Path(directory)) as fleet, open_channel(fleet.router.address) as channel:
            stub = RouterServiceStub(channel)
            streams = await make_streams(stub)
            async for outcome in play(fleet, stub, all_cells(streams), streams):
                outcomes.append(outcome)
                print(_row(outcome), flush=True)
    return _summary(outcomes)


def _row(outcome: Outcome) -> str:
    cell, told = outcome.cell, outcome.error or ("equal" if outcome.equal else "DIFFERENT")
    return (
        f"{cell.kind:12} {cell.fault.value:8} {cell.position:8} {cell.stream:7} {outcome.struck_at:9d}  {told:11}"
        f" {outcome.moves:6d} {outcome.seconds:8.1f} {outcome.leases:7.0f}"
    )


def _summary(outcomes: list[Outcome]) -> int:
    sound = sum(outcome.is_sound for outcome in outcomes)
    moved = sum(outcome.moves > 0 for outcome in outcomes)
    slowest = max(outcome.seconds for outcome in outcomes)
    left = sum(outcome.leases for outcome in outcomes)
    print(
        f"{sound} of {len(outcomes)} cells: output equal to the undisturbed run, no token lost or repeated, none hung; "
        f"{moved} went on elsewhere; slowest {slowest:.1f} s; leases left {left:.0f}"
    )
    return 0 if sound == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
