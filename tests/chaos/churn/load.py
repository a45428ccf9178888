"""Steady load: requests that come whatever becomes of those before them, and what each of them came to."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from contract.router_contract import Answer, collect
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.errors import reason_name
from weir_chassis.status import from_rpc_error

if TYPE_CHECKING:
    from weir.router.v1.router_pb2_grpc import RouterServiceAsyncStub

# A client that is told of its deadline a moment late has not been left hanging.
_LATE_SECONDS = 1.0


@dataclass
class Outcomes:
    """`by_reason`: of those that failed. `wrong`: ended well, and with other tokens than they should have had."""

    requests: int = 0
    answered: int = 0
    wrong: int = 0
    hung: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    continued: int = 0
    slowest_seconds: float = 0.0
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def error_rate(self) -> float:
        return sum(self.by_reason.values()) / max(1, self.requests)

    def note_answer(self, answer: Answer, expected: str) -> None:
        self.answered += 1
        self.wrong += answer.texts != {0: expected}
        self.attempts[answer.receipt.attempts] += 1
        self.continued += answer.receipt.continuations > 0

    def note_failure(self, error: grpc.RpcError) -> None:
        found = from_rpc_error(error)
        reason = reason_name(found.reason)
        self.by_reason[reason] += 1
        self.examples.setdefault(reason, found.message)


@dataclass(frozen=True)
class Load:
    """`per_second` requests of `tokens` tokens each, which may take `deadline_seconds`."""

    per_second: float
    tokens: int
    deadline_seconds: float


async def run_load(router: str, load: Load, seconds: float) -> Outcomes:
    """Returns when the last request is over."""
    outcomes, start = Outcomes(), time.monotonic()
    async with open_channel(router) as channel, asyncio.TaskGroup() as requests:
        stub = RouterServiceStub(channel)
        for number in range(int(seconds * load.per_second)):
            await asyncio.sleep(max(0.0, start + number / load.per_second - time.monotonic()))
            requests.create_task(_ask(stub, load, number, outcomes))
    return outcomes


async def _ask(stub: RouterServiceAsyncStub, load: Load, number: int, outcomes: Outcomes) -> None:
    text = f"request {number:6d} ".ljust(load.tokens, "0123456789"[number % 10])
    request = pb.GenerateRequest(text=text, stopping=StoppingConditions(max_tokens=len(text)))
    began = time.monotonic()
    outcomes.requests += 1
    try:
        answer = await collect(stub.Generate(request, timeout=load.deadline_seconds, wait_for_ready=True))
        outcomes.note_answer(answer, text)
    except grpc.RpcError as error:
        outcomes.note_failure(error)
    took = time.monotonic() - began
    outcomes.slowest_seconds = max(outcomes.slowest_seconds, took)
    outcomes.hung += took > load.deadline_seconds + _LATE_SECONDS
