"""Nothing that means something else to the engine is left to its defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.engine_contract import prompt, request
from fakes.trtllm.llm import Logits, library
from fakes.trtllm.params import SamplingParams
from unit.executor.trtllm.making import running
from weir_executor.engine import EngineInfo
from weir_executor.request import Sampling
from weir_executor.trtllm.probe import probe
from weir_executor.trtllm.sampling import sampling_arguments
from weir_executor.trtllm.stops_held_back import StopsHeldBack
from weir_executor.trtllm.surface import surface

LIBRARY = library()
CAN = probe(LIBRARY, allow_unknown=False)


@pytest.fixture(scope="module")
def info() -> EngineInfo:
    with running() as (engine, _, _heard):
        return replace(engine.info, eos_token_ids=frozenset({2, 7}))


def told(info: EngineInfo, index: int = 0, *, goes_on: bool = False, **fields: Any) -> dict[str, Any]:
    return sampling_arguments(request(1, prompt(9), 20, **fields), index, info, CAN, LIBRARY, goes_on=goes_on)


def test_what_defaults_otherwise_there_is_always_said(info: EngineInfo) -> None:
    names = surface().fields["tensorrt_llm.SamplingParams"]
    said = told(info)
    assert names.defaults.keys() <= said.keys()
    assert {"end_id", "pad_id", "temperature", "top_k", "top_p", "seed"} <= said.keys()
    assert said.keys() <= names.all
    assert (said["max_tokens"], said["n"], said["detokenize"], said["return_perf_metrics"]) == (20, 1, False, False)


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.01, 2),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 1.5),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    seed=st.integers(0, 2**64 - 1),
)
SAME = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@given(SAMPLINGS)
def test_what_is_asked_is_what_is_said(info: EngineInfo, asked: Sampling) -> None:
    said = told(info, sampling=asked)
    assert {name: said[name] for name in SAME} == {name: getattr(asked, name) for name in SAME}
    assert said["seed"] == asked.seed % 2**63
    assert SamplingParams(**said).is_greedy == (asked.top_k == 1)


def test_greedy_is_the_best_token_alone(info: EngineInfo) -> None:
    assert SamplingParams(**told(info, sampling=Sampling(temperature=0, top_k=40))).is_greedy


def test_outputs_draw_differently_and_what_is_resumed_draws_on(info: EngineInfo) -> None:
    sampling, resumed = Sampling(seed=9), {0: [5, 6]}
    seeds = {told(info, index, sampling=sampling, n=3)["seed"] for index in range(3)}
    assert len(seeds) == 3
    again = told(info, sampling=sampling, resumed=resumed, min_tokens=5)
    assert again["seed"] not in seeds
    assert (again["max_tokens"], again["min_tokens"]) == (18, 3)
    on = told(info, sampling=sampling, resumed=resumed, min_tokens=5, goes_on=True)
    assert (on["seed"], on["max_tokens"], on["min_tokens"]) == (9, 20, 5), "they are the engine's own to it"


def test_every_end_of_sequence_ends_and_none_where_they_are_ignored(info: EngineInfo) -> None:
    heeded = told(info, ignore_eos=False, stop_token_ids=frozenset({30}))
    assert (heeded["end_id"], heeded["stop_token_ids"], heeded["ignore_eos"]) == (2, [7, 30], False)
    ignored = told(info, ignore_eos=True)
    assert (ignored["stop_token_ids"], ignored["ignore_eos"]) == (None, True)


@pytest.mark.parametrize(("asked", "number"), [(None, None), (0, 1), (1, 1), (5, 5)])
def test_log_probabilities_are_asked_for_the_drawn_token_too(
    info: EngineInfo, asked: int | None, number: int | None
) -> None:
    assert told(info, sampling=Sampling(top_logprobs=asked))["logprobs"] == number


def test_penalties_count_what_was_drawn_before_and_not_the_prompt(info: EngineInfo) -> None:
    assert told(info, sampling=Sampling(presence_penalty=0.5), resumed={0: [5]})["prompt_ignore_length"] == 9
    assert "prompt_ignore_length" not in told(info, sampling=Sampling(repetition_penalty=1.5))
    older = replace(CAN, prompt_ignore_length=False)
    generation = request(1, prompt(9), 20, sampling=Sampling(presence_penalty=0.5))
    assert "prompt_ignore_length" not in sampling_arguments(generation, 0, info, older, LIBRARY)


def test_stop_tokens_are_held_back_until_their_time(info: EngineInfo) -> None:
    held = told(info, stop_token_ids=frozenset({30, 31}), min_tokens=4)["logits_processor"]
    assert held == StopsHeldBack((30, 31), 13)
    assert told(info, stop_token_ids=frozenset({30}))["logits_processor"] is None
    early, late = Logits(), Logits()
    held(1, early, [list(range(12))], None, None)
    held(1, late, [list(range(13))], None, None)
    assert (early.banned, late.banned) == ({30, 31}, set())
