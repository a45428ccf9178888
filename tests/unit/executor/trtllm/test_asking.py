"""What the engine is asked for beside the sampling: who goes first, whose blocks, by which adapter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from contract.engine_contract import hashes, prompt, request
from fakes.trtllm import llm as fake
from fakes.trtllm.params import SchedulerConfig
from unit.executor.trtllm.making import running, until
from weir_executor.foreign import line
from weir_executor.foreign.salts import shared_salt

ROOT = b"contract tests.."


class Prioritized(fake.LLM):
    """As of newer versions. `heard`: of each request."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        self.heard: list[float] = []
        super().__init__(*positional, **named)

    def generate_async(self, inputs: Any, priority: float = 0.5, **others: Any) -> Any:  # type: ignore[override]
        assert 0 <= priority <= 1
        self.heard.append(priority)
        return super().generate_async(inputs, **others)


@dataclass(kw_only=True)
class Queue(SchedulerConfig):
    waiting_queue_policy: str = "fcfs"


def test_a_priority_is_told_where_it_counts() -> None:
    with running(fake.library(LLM=Prioritized, SchedulerConfig=Queue)) as (engine, llm, heard):
        for key, priority in enumerate((-100, 0, 37, 100)):
            engine.submit(request(key, prompt(5), 2, priority=priority))
            heard.wait_for_ends(key)
        assert isinstance(llm, Prioritized)
        assert llm.heard[1:] == pytest.approx([0.0, 0.5, 0.685, 1.0])
    with running(fake.library(LLM=Prioritized)) as (engine, llm, heard):
        engine.submit(request(1, prompt(5), 2, priority=100))
        heard.wait_for_ends(1)
        assert isinstance(llm, Prioritized)
        assert llm.heard[1:] == [0.5], "nobody heeds it there"


def test_outputs_of_one_request_find_one_anothers_blocks_and_nobody_elses() -> None:
    """The prompt is computed once: the others wait for the first token of one."""
    tokens = prompt(50)
    with running() as (engine, llm, heard):
        engine.submit(request(1, tokens, 4, n=3))
        engine.submit(request(2, tokens, 4, n=2))
        heard.wait_for_ends(1, 2)
        submitted = llm.submitted[1:]
        salts = [each["salt"] for each in submitted]
        assert sorted(map(salts.count, set(salts))) == [2, 3]
        assert not any(salt == shared_salt(ROOT) for salt in salts)
        told = [each["result"].cached_tokens for each in submitted]
        assert sorted(told) == [0, 0, 48, 48, 48]


def _asked(llm: fake.LLM, requests: int) -> bool:
    return len(llm.submitted) == requests


def test_a_prompt_without_a_block_to_share_and_one_without_a_cache_are_begun_at_once() -> None:
    for length, cached in ((16, True), (50, False)):
        with running(prefix_cache=cached) as (engine, llm, heard):
            llm.hang()
            engine.submit(request(1, prompt(length), 4, n=3))
            until(partial(_asked, llm, 4))
            llm.resume()
            heard.wait_for_ends(1)


def test_outputs_that_let_another_go_ahead_are_begun_when_that_is_aborted_and_not_when_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line, "_ABORT_SECONDS", 3600.0)  # not by the time limit
    with running() as (engine, llm, heard):
        llm.hang()
        engine.submit(request(1, prompt(50), 6, n=3))
        engine.abort(1, 0)
        engine.abort(1, 2)
        llm.resume()
        (end,) = heard.wait_for_ends(1)
        assert (end.error, end.completion_tokens) == (None, 6)
        assert len(heard.tokens[1, 1]) == 6
        assert len(llm.submitted) == 3


def test_places_are_kept_for_those_that_let_another_go_ahead() -> None:
    with running(max_num_seqs=3) as (engine, llm, heard):
        llm.hang()
        engine.submit(request(1, prompt(50), 6, n=3))
        engine.submit(request(2, prompt(50), 6))
        until(lambda: engine.load().waiting_requests == 1)
        assert engine.load().running_sequences == 3
        llm.resume()
        heard.wait_for_ends(1, 2)


def test_whose_blocks_they_are_is_said_by_the_scope() -> None:
    tokens = prompt(40)
    with running() as (engine, llm, heard):
        engine.submit(request(1, tokens, 2, n=2, block_hashes=hashes(tokens, 16), cache_scope=ROOT))
        heard.wait_for_ends(1)
        assert {each["salt"] for each in llm.submitted[1:]} == {shared_salt(ROOT)}
