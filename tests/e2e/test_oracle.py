"""Through all five services the demo model says what transformers says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from e2e.conftest import Stack, start_stack
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_client.answer import collect
from weir_client.client import Client, user
from weir_local.placement import find_model

_GREEDY = SamplingParameters(temperature=0)
QUESTIONS = ["What is a weir?", "Tell me a story about a heron.", "What does the json module do?", "Hello!"]


@pytest.fixture(scope="module")
def fp32_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = start_stack(tmp_path_factory.mktemp("fp32"), "--one-process", "--dtype", "float32")
    yield running
    assert running.stop() == 0


class Oracle:
    """transformers' own tokenizer, template and greedy `generate`, in fp32."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def prompt(self, question: str) -> list[int]:
        messages = [{"role": "user", "content": question}]
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def answer(self, prompt: list[int], max_tokens: int) -> list[int]:
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
            )
        return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(find_model(None))


async def test_greedy_chat_equals_transformers_ids_and_text(fp32_stack: Stack, oracle: Oracle) -> None:
    async with Client(fp32_stack.router) as client:
        answers = await asyncio.gather(
            *(
                collect(client.chat([user(q)], sampling=_GREEDY, stopping=StoppingConditions(max_tokens=48)))
                for q in QUESTIONS
            )
        )
    for question, answer in zip(QUESTIONS, answers, strict=True):
        prompt = oracle.prompt(question)
        expected = oracle.answer(prompt, 48)
        assert answer.outputs[0].token_ids == expected, question
        assert answer.text == oracle.tokenizer.decode(expected, skip_special_tokens=True)
        assert answer.usage.prompt_tokens == len(prompt)
        assert answer.usage.completion_tokens == len(expected)


async def test_token_ids_in_give_the_same_token_ids_out(fp32_stack: Stack, oracle: Oracle) -> None:
    prompt = oracle.prompt(QUESTIONS[0])
    async with Client(fp32_stack.router) as client:
        answer = await collect(client.generate(prompt, sampling=_GREEDY, stopping=StoppingConditions(max_tokens=32)))
    assert answer.outputs[0].token_ids == oracle.answer(prompt, 32)


async def test_a_stop_string_cuts_the_oracles_text(fp32_stack: Stack, oracle: Oracle) -> None:
    prompt = oracle.prompt(QUESTIONS[1])
    whole = oracle.tokenizer.decode(oracle.answer(prompt, 48), skip_special_tokens=True)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 5]
    stopping = StoppingConditions(max_tokens=48, stop=[stop])
    async with Client(fp32_stack.router) as client:
        answer = await collect(client.chat([user(QUESTIONS[1])], sampling=_GREEDY, stopping=stopping))
    assert answer.text == whole[: whole.index(stop)]
    finished = answer.outputs[0].finished
    assert finished is not None
    assert finished.stop == stop
