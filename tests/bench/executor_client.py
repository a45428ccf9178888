"""One stream to one executor, as a router holds it: all of a workload at once, and when each first token came."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field

import grpc

from bench.workload import Work
from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.kvstore.v1.block_hash import HashScope, block_hashes, join_hashes, scope_root
from weir_chassis.channel import open_channel

_ANSWER_SECONDS = 300.0


@dataclass(slots=True)
class Heard:
    """What came, by request, and when: seconds from the moment that all were sent."""

    first_token: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    seconds: float = 0.0  # until the last request's end
    engine_cached: int = 0  # prompt tokens that the executor's own pool held, of all requests
    store_cached: int = 0  # and that the kvstore held

    @property
    def median_first_token(self) -> float:
        return statistics.median(self.first_token.values())

    def note(self, response: pb.GenerateResponse, now: float) -> int:
        """How many requests it ends."""
        offset = 0
        for handle, count in zip(response.tokens.handles, response.tokens.token_counts, strict=True):
            self.first_token.setdefault(handle, now)
            self.tokens[handle] += response.tokens.token_ids[offset : offset + count]
            offset += count
        assert not response.failed, response.failed
        for end in response.ended:
            self.engine_cached += end.engine_cached_tokens
            self.store_cached += end.store_cached_tokens
        self.seconds = now
        return len(response.ended)


async def answer(address: str, work: Work) -> Heard:
    """A prompt of a work that is not `cached` comes without hashes: it finds no blocks and leaves none."""
    async with open_channel(address) as channel:
        stub = ExecutorServiceStub(channel)
        info = await stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
        submits = [_submit(info, handle, work) for handle in range(len(work.prompts))]
        call = stub.Generate(timeout=_ANSWER_SECONDS)
        heard = await _hear(call, submits)
    assert [len(heard.tokens[handle]) for handle in range(len(submits))] == work.lengths
    return heard


async def _hear(
    call: grpc.aio.StreamStreamCall[pb.GenerateRequest, pb.GenerateResponse], submits: list[pb.Submit]
) -> Heard:
    heard, began, left = Heard(), time.perf_counter(), len(submits)
    for submit in submits:
        await call.write(pb.GenerateRequest(submit=submit))
    while left:
        response = await call.read()
        assert isinstance(response, pb.GenerateResponse), f"the stream ended with {await call.code()}"
        left -= heard.note(response, time.perf_counter() - began)
    await call.done_writing()
    return heard


def _submit(info: pb.GetModelInfoResponse, handle: int, work: Work) -> pb.Submit:
    version, prompt = info.model_version, work.prompts[handle]
    root = scope_root(HashScope(version.model, version.revision, version.tokenizer_hash))
    return pb.Submit(
        handle=handle,
        model_version=version,
        token_ids=prompt,
        block_hashes=join_hashes(block_hashes(root, prompt, info.block_size)) if work.cached else b"",
        sampling=SamplingParameters(temperature=0),
        stopping=StoppingConditions(max_tokens=work.lengths[handle], ignore_eos=True),
    )
