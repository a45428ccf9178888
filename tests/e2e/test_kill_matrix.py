"""A part of `make kill-matrix`: each fault, each place and each kind of stream, on each kind of worker."""

from __future__ import annotations

from pathlib import Path

from chaos.kill_matrix.cells import ASKED, Cell, make_streams, play
from chaos.kill_matrix.fleet import Fault, running_fleet
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel

_STREAMS = ("greedy", "n=2", "seeded", "stop")
_CELLS = [
    Cell("executor", Fault.KILL, "token 0", "seeded"),
    Cell("executor", Fault.CUT, "token 1", "n=2"),
    Cell("executor", Fault.STOP, "middle", "greedy"),
    Cell("executor", Fault.TERM, "middle", "stop"),
    Cell("executor", Fault.KILL, "last", "n=2"),
    Cell("postprocess", Fault.CUT, "token 0", "greedy"),
    Cell("postprocess", Fault.KILL, "token 1", "stop"),
    Cell("postprocess", Fault.TERM, "middle", "n=2"),
    Cell("postprocess", Fault.STOP, "middle", "seeded"),
    Cell("postprocess", Fault.KILL, "last", "seeded"),
    *(Cell("tokenizer", fault, ASKED, stream) for fault, stream in zip(Fault, _STREAMS, strict=True)),
]


async def test_a_stream_survives_its_workers_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    async with running_fleet(tmp_path) as fleet, open_channel(fleet.router.address) as channel:
        stub = RouterServiceStub(channel)
        streams = await make_streams(stub)
        outcomes = [outcome async for outcome in play(fleet, stub, _CELLS, streams)]
    assert all(outcome.is_sound for outcome in outcomes), [each for each in outcomes if not each.is_sound]
    moved = [outcome for outcome in outcomes if outcome.struck_at and outcome.moves]
    assert moved, "every stream was over before its signal came"
    asked = [outcome for outcome in outcomes if outcome.cell.position == ASKED and outcome.moves]
    assert asked, "no tokenizer had been asked when its signal came"
