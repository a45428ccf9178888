"""One stream, one worker of it struck at one token: the answer beside that of an undisturbed run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import grpc

from chaos.kill_matrix.fleet import Fault, Fleet
from chaos.services import until
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
    """`struck_at`: tokens that the client had. `error`: the reason of its end; empty: it has ended well."""

    cell: Cell
    struck_at: int
    equal: bool
    error: str
    continuations: int
    seconds: float
    leases: float

    @property
    def is_sound(self) -> bool:
        return self.equal and not self.error and not self.leases


def all_cells(streams: Mapping[str, Stream]) -> list[Cell]:
    return [Cell(*each) for each in product(KINDS, Fault, POSITIONS, streams)]


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
        # Of the three, one may still be on its way back.
        await fleet.until_known(cell.kind, 2)
        outcome, task = await _play(fleet, stub, cell, streams[cell.stream])
        healing.add(task)
        task.add_done_callback(healing.discard)
        yield outcome
    await asyncio.gather(*healing)


async def _play(fleet: Fleet, stub: Stub, cell: Cell, stream: Stream) -> tuple[Outcome, asyncio.Task[None]]:
    answer, began, error = Answer(), time.monotonic(), ""
    task = asyncio.create_task(collect(stub.Generate(stream.request, timeout=_HANG_SECONDS), answer))
    worker = await fleet.holder(cell.kind)
    await until(lambda: task.done() or _seen(answer) >= stream.place(cell.position))
    struck_at = _seen(answer)
    fleet.strike(worker, cell.fault)
    try:
        await task
    except grpc.RpcError as failure:
        error = reason_name(from_rpc_error(failure).reason)
    seconds = time.monotonic() - began
    healing = asyncio.create_task(fleet.heal(worker, cell.fault))
    continuations = answer.kinds.count("continued")
    leases = await fleet.until_held_by_nobody()
    equal = not error and _told(answer) == _told(stream.wanted)
    return Outcome(cell, struck_at, equal, error, continuations, seconds, leases), healing


def _seen(answer: Answer) -> int:
    return max(map(len, answer.token_ids.values()), default=0)


def _told(answer: Answer) -> object:
    """All of an answer that must not depend on who gave it."""
    usage = answer.usage.prompt_tokens, answer.usage.completion_tokens
    return answer.token_ids, answer.texts, answer.finished, answer.logprobs, usage
