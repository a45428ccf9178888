"""Every way to draw tokens, on the demo model, goes on exactly at another executor: the grammar, the penalties, the
guesses and the watermark stand where they stood."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from contract.router_contract import Answer, collect
from e2e.conftest import Stack, load_of, start_stack, until_idle
from weir.inference.v1.guide_pb2 import Guide
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.speculation_pb2 import SPECULATION_MODE_NGRAM, Speculation
from weir.inference.v1.watermark_pb2 import Watermark
from weir.router.v1.router_pb2 import GenerateRequest
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel

_SCHEMA = (
    '{"type": "object", "properties": {"animals": {"type": "array", "minItems": 12, "maxItems": 12, '
    '"items": {"type": "string", "minLength": 8, "maxLength": 12}}}, "required": ["animals"]}'
)
_LONG = StoppingConditions(max_tokens=160, ignore_eos=True)
_GUIDED = StoppingConditions(max_tokens=160)
_REQUESTS: Mapping[str, tuple[SamplingParameters, StoppingConditions]] = {
    "guided": (SamplingParameters(temperature=1, seed=1, guide=Guide(json_schema=_SCHEMA)), _GUIDED),
    "guided, several": (SamplingParameters(temperature=1, seed=2, n=2, guide=Guide(regex="([a-z]{4} ){30}")), _GUIDED),
    "penalties": (
        SamplingParameters(
            temperature=0.9, seed=3, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, top_p=0.95
        ),
        _LONG,
    ),
    "guesses": (SamplingParameters(temperature=0, speculation=Speculation(mode=SPECULATION_MODE_NGRAM)), _LONG),
    "watermark": (SamplingParameters(temperature=1, seed=4, watermark=Watermark()), _LONG),
    "logprobs": (SamplingParameters(temperature=1, seed=5, n=2, logprobs=3), _LONG),
    "stop tokens": (
        SamplingParameters(temperature=1, seed=6),
        StoppingConditions(max_tokens=160, min_tokens=120, stop_token_ids=range(300, 340)),
    ),
    "stop strings": (
        SamplingParameters(temperature=1, seed=7),
        StoppingConditions(max_tokens=160, stop=["zzz", ". Q"]),
    ),
}


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Stack]:
    """Two executors that a test may kill."""
    key = tmp_path / "key"
    key.write_bytes(b"a secret of sixteen bytes or more")
    running = start_stack(tmp_path, "--executors", "2", "--watermark-key", str(key))
    yield running
    running.process.send_signal(signal.SIGINT)
    running.process.wait(60)


async def test_whatever_decides_the_tokens_decides_the_same_at_the_next_executor(mortal: Stack) -> None:
    async with open_channel(mortal.router) as channel:
        stub = RouterServiceStub(channel)
        wanted = {name: await collect(stub.Generate(_request(name))) for name in _REQUESTS}
        answers = {name: Answer() for name in _REQUESTS}
        tasks = {name: asyncio.create_task(collect(stub.Generate(_request(name)), answers[name])) for name in _REQUESTS}
        while not all(answer.token_ids for answer in answers.values()):
            await asyncio.sleep(0.002)
        busy = [address for address in mortal.addresses("executor") if (await load_of(address)).live_requests]
        os.kill(mortal.pid(busy[0]), signal.SIGKILL)
        await asyncio.gather(*tasks.values())
    for name, answer in answers.items():
        assert _told(answer) == _told(wanted[name]), name
        # Of sums in another order: a prompt's, where there were steps.
        assert _logprobs(answer) == pytest.approx(_logprobs(wanted[name]), abs=1e-3), name
    assert sum(answer.receipt.continuations for answer in answers.values()) > 0
    assert all(answer.continued is None or answer.continued.exact for answer in answers.values())
    await until_idle(mortal.addresses("executor"), seconds=30)


def _request(name: str) -> GenerateRequest:
    sampling, stopping = _REQUESTS[name]
    return GenerateRequest(
        text="Once upon a time there was a fox who lived beside", sampling=sampling, stopping=stopping
    )


def _told(answer: Answer) -> object:
    """All of an answer that must not depend on who gave it."""
    usage = answer.usage.prompt_tokens, answer.usage.completion_tokens
    return answer.token_ids, answer.texts, answer.finished, usage


def _logprobs(answer: Answer) -> list[float]:
    return [entry.logprob for index in sorted(answer.logprobs) for entry in answer.logprobs[index]]
