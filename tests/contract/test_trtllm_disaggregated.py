"""A router before two TensorRT-LLM executors, over fake engines: one computes prompts, the other goes on with them.

Everything but the engine is real, in one process. The answers are those of one executor that does all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contract import router_contract
from contract.postprocess_contract import write_tokenizer
from contract.router_contract import Answer, Door
from contract.test_router_contract import MODEL, placed
from fakes.trtllm.llm import LLM, library
from unit.tokenizer.model_directories import fixture_template, write_model
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1 import router_pb2
from weir_chassis.inmemory import InMemoryChannel, InMemoryServer
from weir_executor.service import SERVICE as EXECUTOR
from weir_executor.trtllm import load
from weir_postprocess.service import SERVICE as POSTPROCESS
from weir_router.service import SERVICE as ROUTER
from weir_tokenizer.service import SERVICE as TOKENIZER

_PROMPT_TOKENS = 48  # from so many on, a prompt is computed apart
_SECONDS = 30.0
_SAMPLINGS = {
    "greedy": SamplingParameters(temperature=0),
    "seeded": SamplingParameters(temperature=1, seed=11),
    "several": SamplingParameters(temperature=0.8, top_p=0.9, seed=12, n=3),
    "logprobs": SamplingParameters(temperature=1, seed=13, logprobs=2),
}


@dataclass
class Apart:
    """`engines`: by the executor's name, once it is there."""

    door: Door
    engines: dict[str, LLM]
    servers: dict[str, InMemoryServer]

    async def ask(self, index: int, sampling: SamplingParameters) -> Answer:
        prompt = f"{index} foxes. " + "Once upon a time there was a little fox. " * (2 + index % 3)
        stopping = StoppingConditions(max_tokens=12, ignore_eos=True)
        asked = router_contract.text(self.door, prompt, sampling=sampling, stopping=stopping)
        answer = await router_contract.collect(self.door.stub.Generate(asked, timeout=_SECONDS))
        answer.check_complete(sampling.n or 1)
        return answer

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(_SECONDS):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_empty(self) -> None:
        await self.until(lambda: not any(llm.pins or llm._running or llm._pool.used for llm in self.engines.values()))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tokenizer(tmp_path_factory.mktemp("model"))
    tokenizer_json = (directory / "tokenizer.json").read_text(encoding="utf-8")
    write_model(directory, tokenizer_json=tokenizer_json, template=fixture_template("chatml"), context=None)
    (directory / "config.json").write_text('{"max_position_embeddings": 512, "vocab_size": 257, "eos_token_id": 256}')
    return directory


@asynccontextmanager
async def serving(model_dir: Path, monkeypatch: pytest.MonkeyPatch, **roles: dict[str, Any]) -> AsyncIterator[Apart]:
    """One executor for each name in `roles`, with its settings."""
    engines, servers = dict[str, LLM](), dict[str, InMemoryServer]()
    monkeypatch.setattr(load, "load_library", lambda: library(LLM=noted))
    starting: list[str] = []

    def noted(**arguments: Any) -> LLM:
        engines[starting[-1]] = LLM(**arguments)
        return engines[starting[-1]]

    noted.generate_async = LLM.generate_async  # type: ignore[attr-defined]  # what a probe looks at
    models = {MODEL: str(model_dir)}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(placed("tokenizer", TOKENIZER, {"models": models}, servers))
        await stack.enter_async_context(placed("postprocess", POSTPROCESS, {"models": models}, servers))
        for name, settings in roles.items():
            starting.append(name)
            fields = {"model_dir": model_dir, "model": MODEL, "engine": "trtllm", "num_blocks": 2048, **settings}
            await stack.enter_async_context(placed(name, EXECUTOR, fields, servers))
        router = {
            "tokenizers": ("memory:tokenizer",),
            "postprocessors": ("memory:postprocess",),
            "executors": tuple(f"memory:{name}" for name in roles),
            "disaggregate_tokens": _PROMPT_TOKENS,
        }
        await stack.enter_async_context(placed("router", ROUTER, router, servers))
        channel = InMemoryChannel(servers["router"])
        stack.push_async_callback(channel.close)
        door = router_contract.connect(channel, MODEL)
        await router_contract.until_healthy(door)
        await _until_all_serve(door, len(roles))
        yield Apart(door, engines, servers)


async def _until_all_serve(door: Door, count: int) -> None:
    async with asyncio.timeout(_SECONDS):
        while (await door.stub.ListModels(router_pb2.ListModelsRequest())).models[0].healthy_workers < count:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def apart(model_dir: Path, monkeypatch: pytest.MonkeyPatch, **decode: Any) -> AsyncIterator[Apart]:
    roles = {"prefill": {"role": "prefill"}, "decode": {"role": "decode", "handoff_deadline_seconds": 30, **decode}}
    async with serving(model_dir, monkeypatch, **roles) as running:
        yield running


def told(answer: Answer) -> object:
    """All of an answer that must not depend on who computed it."""
    usage = answer.usage
    logprobs = {index: [entry.logprob for entry in entries] for index, entries in answer.logprobs.items()}
    return answer.token_ids, answer.texts, answer.finished, usage.prompt_tokens, usage.completion_tokens, logprobs


async def _whole(model_dir: Path, monkeypatch: pytest.MonkeyPatch, plan: list[SamplingParameters]) -> list[object]:
    async with serving(model_dir, monkeypatch, executor={}) as running:
        return [told(await running.ask(*each)) for each in enumerate(plan)]


async def test_answers_are_those_of_one_executor_and_nothing_is_left(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = list(_SAMPLINGS.values()) * 4
    wanted = await _whole(model_dir, monkeypatch, plan)
    async with apart(model_dir, monkeypatch) as running:
        answers = await asyncio.gather(*(running.ask(*each) for each in enumerate(plan)))
        await running.until_empty()
        prefill, decode = running.engines["prefill"], running.engines["decode"]
    assert [told(answer) for answer in answers] == wanted
    assert {answer.receipt.prefill_worker for answer in answers} == {"memory:prefill"}
    assert {answer.receipt.worker for answer in answers} == {"memory:decode"}
    assert _kinds(prefill) == {"context_only"}
    assert _kinds(decode) == {"generation_only"}
    print(f"disaggregated TensorRT-LLM: {len(plan)} requests equal, 0 blocks and 0 leases left")


def _kinds(llm: LLM) -> set[str]:
    """Of what was asked of the engine, small prompts left out: those by which it was warmed up, and found healthy."""
    kinds = (each["disaggregated"] for each in llm.submitted if len(each["inputs"]) >= _PROMPT_TOKENS)
    return {"whole" if kind is None else kind.request_type for kind in kinds}


async def test_a_prefill_worker_that_is_lost_in_the_handover_costs_no_request(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first tokens have come and its blocks have not: they are computed where the rest is."""
    plan = [_SAMPLINGS["greedy"]] * 6
    wanted = await _whole(model_dir, monkeypatch, plan)
    async with apart(model_dir, monkeypatch) as running:
        prefill, decode = running.engines["prefill"], running.engines["decode"]
        decode.fetches_hang = True
        asked = [asyncio.create_task(running.ask(*each)) for each in enumerate(plan)]
        # All are handed over: what the router has not heard of is lost with the worker, and computed anew.
        await running.until(lambda: sum(each["disaggregated"] is not None for each in decode.submitted) == len(plan))
        assert len(prefill.pins) == len(plan)
        prefill.pins.is_up = False
        await running.servers["prefill"].stop(None)
        decode.fetches_hang = False
        answers = await asyncio.gather(*asked)
        assert [told(answer) for answer in answers] == wanted
        assert {answer.receipt.prefill_worker for answer in answers} == {"memory:prefill"}
        assert all(answer.usage.completion_tokens == 12 for answer in answers)
        await running.until(lambda: not decode._running and not decode._pool.used)


async def test_a_prefill_worker_that_is_lost_before_the_first_token_costs_no_request(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = [_SAMPLINGS["greedy"]] * 4
    wanted = await _whole(model_dir, monkeypatch, plan)
    async with apart(model_dir, monkeypatch) as running:
        prefill = running.engines["prefill"]
        prefill.hang()
        asked = [asyncio.create_task(running.ask(*each)) for each in enumerate(plan)]
        await running.until(lambda: len(prefill.submitted) > len(plan))
        await running.servers["prefill"].stop(None)
        answers = await asyncio.gather(*asked)
        assert [told(answer) for answer in answers] == wanted
        prefill.resume()


async def test_clients_that_leave_in_the_middle_leave_nothing(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL", "1")
    async with apart(model_dir, monkeypatch) as running:
        for turn in range(24):
            task = asyncio.create_task(running.ask(turn, _SAMPLINGS["several"]))
            for _ in range(turn * 3):
                await asyncio.sleep(0.0005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await running.until_empty()
        assert (await running.ask(99, _SAMPLINGS["greedy"])).receipt.prefill_worker
