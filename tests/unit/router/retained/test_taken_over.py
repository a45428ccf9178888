"""A router takes over what another has begun: its own pipeline goes on, after any token, and the output is the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import grpc
import pytest

from contract.retained_contract import Place, ScriptedRuns, until
from contract.router_contract import Answer, collect
from fakes import bytes_model
from fakes.suite import Suite, suite
from servers import RedisServer, redis_server
from unit.router.retained.shared_routers import SHARING, held, router
from weir.inference.v1.routing_pb2 import ContinuationMode
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.stream_pb2 import Accepted, Continued, Delta
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import reason_name
from weir_chassis.status import from_rpc_error
from weir_router.delivery import Event
from weir_router.fleet.model_version import Version
from weir_router.request import EncodedPrompt

TEXT = "a wörld wide weir"


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.command("FLUSHALL")
    return running


def request(n: int = 1, **stopping: Any) -> pb.GenerateRequest:
    message = pb.GenerateRequest(text=TEXT, stopping=StoppingConditions(**stopping), sampling=SamplingParameters(n=n))
    message.routing.retain.seconds = 60
    return message


def until_token(answer: Answer, tokens: int) -> list[Event]:
    """The events of an undisturbed answer as far as so many tokens of each output, in deltas as small as can be."""
    model = answer.accepted.model_version
    events: list[Event] = [Accepted(request_id="r", attempt=1, model_version=model)]
    for index, token_ids in answer.token_ids.items():
        text, is_over = answer.texts[index], tokens >= len(token_ids)
        ends = [end for end in range(min(tokens + 1, len(token_ids))) if _may_end(token_ids[:end], text)]
        for first, end in pairwise([*ends, len(token_ids)] if is_over else ends):
            said, more = _text(token_ids[:first]), text if end == len(token_ids) else _text(token_ids[:end])
            delta = Delta(output_index=index, first_token_index=first, token_ids=token_ids[first:end])
            delta.text = more[len(said) :]
            events.append(delta)
        if is_over:
            events.append(answer.finished[index])
    return events


def _may_end(token_ids: Sequence[int], text: str) -> bool:
    """No token is held: its characters are whole, and none of them belongs to a stop string."""
    try:
        return text.startswith(_text(token_ids))
    except UnicodeDecodeError:
        return False


def _text(token_ids: Sequence[int]) -> str:
    return bytes(token_id for token_id in token_ids if token_id != bytes_model.EOS).decode()


async def taken_over(
    server: RedisServer, running: Suite, message: pb.GenerateRequest, told: list[Event], *, numerics: str | None = None
) -> Answer:
    """What a client is given by the real router after another one has told this much, and died."""
    prompt = EncodedPrompt(Version.of(bytes_model.VERSION), list(TEXT.encode()), b"", bytes_model.BLOCK_SIZE)
    model = running.fleet.snapshot().executors[0].model
    assert model is not None
    pipeline = ScriptedRuns(prompt=prompt, numerics=model.numerics if numerics is None else numerics)
    async with router(server, pipeline, sharing=replace(SHARING, lease=0.2)) as first:
        call = Place(first.requests, first.requests, pipeline, lambda: held(first)).ask(first.requests, message)
        (await pipeline.begun()).say(*told)
        await until(lambda: len(call.events) >= 1)
        await first.shared.sync()
        await first.dies()
        answer = await collect(running.router.Resume(pb.ResumeRequest(request_id="r")))
        await call.lose()
    return answer


KINDS = {
    "plain": request(),
    "n_outputs": request(n=3),
    "stop_string": request(stop=["de w"]),
    "length": request(max_tokens=7, ignore_eos=True),
}


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 6, 12, 13, 16, 18, 19])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_output_is_that_of_the_undisturbed_run(server: RedisServer, kind: str, tokens: int) -> None:
    message = KINDS[kind]
    async with suite(redis_url=server.url, redis_store="test", redis_flush_seconds=0.01) as running:
        undisturbed = await collect(running.router.Generate(message, metadata=(("weir-request-id", "u"),)))
        answer = await taken_over(server, running, message, until_token(undisturbed, tokens))
        answer.check_complete(n=message.sampling.n)
        assert answer.token_ids == undisturbed.token_ids
        assert answer.texts == undisturbed.texts
        assert answer.finished == undisturbed.finished
        assert answer.usage.completion_tokens == undisturbed.usage.completion_tokens
        is_over = tokens >= max(map(len, undisturbed.token_ids.values()))
        assert ("continued" in answer.kinds) == (tokens > 0 and not is_over)
        if "continued" in answer.kinds:
            assert answer.continued == Continued(attempt=2, reason="WORKER_LOST", exact=True)


@pytest.mark.parametrize("mode", ["BEST_EFFORT", "EXACT", "NONE"])
async def test_an_executor_that_computes_otherwise_goes_on_only_for_who_wants_that(
    server: RedisServer, mode: str
) -> None:
    message = request()
    message.routing.continuation = ContinuationMode.Value(f"CONTINUATION_MODE_{mode}")
    sharing: dict[str, Any] = {"redis_url": server.url, "redis_store": "test", "redis_flush_seconds": 0.01}
    async with suite(**sharing, continuation_wait_seconds=0.1) as running:
        undisturbed = await collect(running.router.Generate(message, metadata=(("weir-request-id", "u"),)))
        told = until_token(undisturbed, 3)
        if mode == "BEST_EFFORT":
            answer = await taken_over(server, running, message, told, numerics="of another kind")
            assert answer.continued.exact is False
            return
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await taken_over(server, running, message, told, numerics="of another kind")
        assert reason_name(from_rpc_error(lost.value).reason) == "WORKER_LOST"
