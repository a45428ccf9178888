"""Clients that ask, read to the end, compare, and ask again, until they are told to stop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import TYPE_CHECKING

import grpc

from contract.router_contract import Answer, collect
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import reason_name
from weir_chassis.status import from_rpc_error

if TYPE_CHECKING:
    from weir.router.v1.router_pb2_grpc import RouterServiceAsyncStub as Stub

# Different ones, so that a token which comes to the wrong client shows.
_PROMPTS = 16
_TIMEOUT_SECONDS = 120.0
# A router that drains refuses at once, and the other one is there.
_MAX_TRIES, _PAUSE_SECONDS = 50, 0.05


@dataclass
class Outcomes:
    """`wrong`: ended well, with other tokens than undisturbed. `refused`: before `accepted`, and asked elsewhere."""

    streams: int = 0
    wrong: int = 0
    tokens: int = 0
    continued: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    # That a client's assertions have found: a delta that repeats or leaves out.
    broken: int = 0

    @property
    def is_sound(self) -> bool:
        return self.streams > 0 and not (self.wrong or self.failed or self.broken)


@dataclass(frozen=True)
class Clients:
    """`wanted`: the answers of undisturbed runs, by prompt."""

    stubs: Sequence[Stub]
    tokens: int
    wanted: Mapping[int, Answer]

    async def run(self, number: int, stop: asyncio.Event, outcomes: Outcomes) -> None:
        """One of them, with one stream at any time."""
        random = Random(number)
        while not stop.is_set():
            await self._ask(random.randrange(_PROMPTS), random.randrange(len(self.stubs)), outcomes)

    async def _ask(self, prompt: int, first: int, outcomes: Outcomes) -> None:
        request = request_of(prompt, self.tokens)
        for attempt in count():
            answer, stub = Answer(), self.stubs[(first + attempt) % len(self.stubs)]
            try:
                await collect(stub.Generate(request, timeout=_TIMEOUT_SECONDS), answer)
            except grpc.RpcError as failure:
                error = from_rpc_error(failure)
                reason = reason_name(error.reason)
                outcomes.examples.setdefault(reason, error.message)
                if not answer.kinds and error.row.code is grpc.StatusCode.UNAVAILABLE and attempt < _MAX_TRIES:
                    outcomes.refused[reason] += 1
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                outcomes.failed[reason] += 1
            except AssertionError as broken:
                outcomes.broken += 1
                outcomes.examples.setdefault("broken", str(broken))
            else:
                self._compare(answer, self.wanted[prompt], outcomes)
            outcomes.streams += 1
            return

    def _compare(self, answer: Answer, wanted: Answer, outcomes: Outcomes) -> None:
        outcomes.tokens += answer.usage.completion_tokens
        outcomes.continued += answer.receipt.continuations
        told = (answer.token_ids, answer.texts, answer.finished, answer.usage.completion_tokens)
        outcomes.wrong += told != (wanted.token_ids, wanted.texts, wanted.finished, wanted.usage.completion_tokens)


def request_of(prompt: int, tokens: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        text=f"Story number {prompt}: once upon a time there was a weir",
        sampling=SamplingParameters(temperature=0.8, seed=prompt),
        stopping=StoppingConditions(max_tokens=tokens, ignore_eos=True),
    )


async def undisturbed(stub: Stub, tokens: int) -> Mapping[int, Answer]:
    answers = await asyncio.gather(*(collect(stub.Generate(request_of(i, tokens))) for i in range(_PROMPTS)))
    return dict(enumerate(answers))
