"""One stream, one worker of it struck at one token: the answer beside that of an undisturbed run.

A tokenizer has a request for a moment only, before the first token. So all of them are stopped until each has been
asked, by a stream each, and then one of them is struck.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import grpc

from chaos.kill_matrix.fleet import Fault, Fleet
from chaos.services import Service, until, until_async
from contract.router_contract import Answer, collect
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import reason_name
from weir_chassis.status import from_rpc_error

if TYPE_CHECKING:
    from weir.router.v1.router_pb2_grpc import RouterServiceAsyncStub as Stub

# Of each output, unless a stop string ends it.
_TOKENS = 16
# An answer takes less than a second, and the worst fault is noticed a second later.
_HANG_SECONDS = 30.0
KINDS = ("executor", "postprocess")
ASKED = "asked"
_RETRIES = 'weir_router_retries_total{extra="retry"'
POSITIONS = ("token 0", "token 1", "middle", "last")


@dataclass(frozen=True)
class Stream:
    """A request, and what it is answered when nothing happens."""

    request: pb.GenerateRequest
    wanted: Answer

    @property
    def length(self) -> int:
        return max(map(len, self.wanted.token_ids.values()))

    def place(self, position: str) -> int:
        """How many tokens the client has read when the worker is struck."""
        return {"token 0": 0, "token 1": 1, "middle": self.length // 2, "last": self.length - 1}[position]


@dataclass(frozen=True)
class Cell:
    kind: str
    fault: Fault
    position: str
    stream: str


@dataclass(frozen=True)
class Outcome:
    """`struck_at`: tokens that the client had. `error`: the reason of its end; empty: it has ended well.

    `moves`: how often it went on elsewhere.
    """

    cell: Cell
    struck_at: int
    equal: bool
    error: str
    moves: int
    seconds: float
    leases: float

    @property
    def is_sound(self) -> bool:
        return self.equal and not self.error and not self.leases


def all_cells(streams: Mapping[str, Stream]) -> list[Cell]:
    reading = [Cell(*each) for each in product(KINDS, Fault, POSITIONS, streams)]
    return [*reading, *(Cell("tokenizer", fault, ASKED, stream) for fault, stream in product(Fault, streams))]


async def make_streams(stub: Stub) -> Mapping[str, Stream]:
    """The stop string begins and ends within tokens, in the second half of an answer that is known."""
    plain = {
        "greedy": _request(SamplingParameters(temperature=0)),
        "seeded": _request(SamplingParameters(temperature=1, seed=7, logprobs=2)),
        "n=2": _request(SamplingParameters(temperature=1, seed=8, n=2)),
    }
    streams = {name: Stream(request, await collect(stub.Generate(request))) for name, request in plain.items()}
    stop = _request(SamplingParameters(temperature=1, seed=7))
    stop.stopping.stop.append(_stop_string(streams["seeded"].wanted.texts[0]))
    return {**streams, "stop": Stream(stop, await collect(stub.Generate(stop)))}


def _request(sampling: SamplingParameters) -> pb.GenerateRequest:
    stopping = StoppingConditions(max_tokens=_TOKENS, ignore_eos=True)
    return pb.GenerateRequest(text="What is a weir?", sampling=sampling, stopping=stopping)


def _stop_string(text: str) -> str:
    begin = len(text) * 5 // 8
    found = text[begin : begin + max(4, len(text) // 8)]
    assert text.find(found) == begin, (text, found)
    return found


async def play(
    fleet: Fleet, stub: Stub, cells: Sequence[Cell], streams: Mapping[str, Stream]
) -> AsyncIterator[Outcome]:
    """One after the other. The worker that is struck comes back beside the next ones."""
    healing: set[asyncio.Task[None]] = set()
    for cell in cells:
        # Of three, one may still be on its way back.
        await fleet.until_known(cell.kind, 2)
        outcome, task = await _play(fleet, stub, cell, streams[cell.stream])
        healing.add(task)
        task.add_done_callback(healing.discard)
        yield outcome
    await asyncio.gather(*healing)


async def _play(fleet: Fleet, stub: Stub, cell: Cell, stream: Stream) -> tuple[Outcome, asyncio.Task[None]]:
    began, retried, error = time.monotonic(), await _retries(fleet), ""
    asked = _Asked(stub, stream)
    worker, struck_at = await (_strike_asked if cell.position == ASKED else _strike_reading)(fleet, cell, asked)
    try:
        await asyncio.gather(*asked.tasks)
    except grpc.RpcError as failure:
        error = reason_name(from_rpc_error(failure).reason)
    seconds = time.monotonic() - began
    healing = asyncio.create_task(fleet.heal(worker, cell.fault))
    moves = sum(answer.kinds.count("continued") for answer in asked.answers) + await _retries(fleet) - retried
    leases = await fleet.until_held_by_nobody()
    equal = not error and all(_told(answer) == _told(stream.wanted) for answer in asked.answers)
    return Outcome(cell, struck_at, equal, error, moves, seconds, leases), healing


class _Asked:
    """Streams of one kind, and what has come of them."""

    def __init__(self, stub: Stub, stream: Stream) -> None:
        self._stub, self.stream = stub, stream
        self.answers: list[Answer] = []
        self.tasks: list[asyncio.Task[Answer]] = []

    def begin(self) -> Answer:
        self.answers.append(answer := Answer())
        call = self._stub.Generate(self.stream.request, timeout=_HANG_SECONDS)
        self.tasks.append(asyncio.create_task(collect(call, answer)))
        return answer


async def _strike_reading(fleet: Fleet, cell: Cell, asked: _Asked) -> tuple[Service, int]:
    """Whoever has it, when its client has read so much. Returns it, and how much that was."""
    answer = asked.begin()
    worker = await fleet.holder(cell.kind)
    await until(lambda: asked.tasks[0].done() or _seen(answer) >= asked.stream.place(cell.position))
    struck_at = _seen(answer)
    fleet.strike(worker, cell.fault)
    return worker, struck_at


async def _strike_asked(fleet: Fleet, cell: Cell, asked: _Asked) -> tuple[Service, int]:
    with fleet.stopped(cell.kind) as workers:
        for _ in workers:
            asked.begin()
        await until_async(partial(_holds, fleet.router, len(workers)))
        fleet.strike(workers[0], cell.fault)
    return workers[0], 0


async def _holds(router: Service, count: int) -> bool:
    return await router.leases() >= count


async def _retries(fleet: Fleet) -> int:
    """Of all requests so far, before their first token."""
    metrics = await fleet.router.metrics()
    return int(sum(value for name, value in metrics.items() if name.startswith(_RETRIES)))


def _seen(answer: Answer) -> int:
    return max(map(len, answer.token_ids.values()), default=0)


def _told(answer: Answer) -> object:
    """All of an answer that must not depend on who gave it."""
    usage = answer.usage.prompt_tokens, answer.usage.completion_tokens
    return answer.token_ids, answer.texts, answer.finished, answer.logprobs, usage
