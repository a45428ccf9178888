"""Prompts that go from engine to engine, under the faults that such transfers are known for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from contract.engine_contract import GREEDY, SEEDED, Listener, hashes, prompt, request
from fakes.trtllm import fabric, names, params
from fakes.trtllm.llm import LLM, library
from unit.executor.guide_tokens import text_of
from unit.executor.trtllm.making import Unchecked, model_dir, running, until
from weir_chassis.errors import Unsupported
from weir_executor.guided.guide import Guide, GuideKind
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.step_output import FinishReason, RequestEnd
from weir_executor.trtllm.config import Transceiver
from weir_executor.trtllm.engine import TrtEngine
from weir_executor.trtllm.probe import probe

Side = tuple[TrtEngine, LLM, Listener]
PREFILL = Transceiver(takes_over=False, timeout_seconds=60.0)
DECODE = Transceiver(hands_off=False, deadline_seconds=60.0, timeout_seconds=60.0)
PROMPT = prompt(50)


@contextmanager
def pair(
    lib: Any = None, prefill: Transceiver = PREFILL, decode: Transceiver = DECODE, **fields: Any
) -> Iterator[tuple[Side, Side]]:
    with (
        running(lib, transceiver=prefill, **fields) as first,
        running(lib, transceiver=decode, **fields) as second,
    ):
        yield first, second


def asked(key: int = 1, **fields: Any) -> GenerationRequest:
    return request(key, PROMPT, 12, **{"block_hashes": hashes(PROMPT, 16), "sampling": SEEDED, **fields})


def handed(side: Side, generation: GenerationRequest) -> tuple[dict[int, list[int]], RequestEnd]:
    engine, _, heard = side
    engine.submit(replace(generation, hand_off=True))
    (end,) = heard.wait_for_ends(generation.key)
    assert end.error is None
    return {index: heard.tokens[generation.key, index] for index in range(generation.n)}, end


def alone(generation: GenerationRequest) -> list[list[int]]:
    """The tokens of an engine that does all of it."""
    with running() as (engine, _, heard):
        engine.submit(generation)
        heard.wait_for_ends(generation.key)
        return [heard.tokens[generation.key, index] for index in range(generation.n)]


def whole(begun: dict[int, list[int]], heard: Listener, key: int = 1) -> list[list[int]]:
    return [[*tokens, *heard.tokens[key, index]] for index, tokens in begun.items()]


def test_a_prompt_goes_over_as_the_engines_want_it_and_its_first_token_counts_once() -> None:
    wanted = alone(asked(n=2))
    with pair() as (first, second):
        begun, end = handed(first, asked(n=2))
        context = first[1].submitted[1:]
        assert [each["disaggregated"].request_type for each in context] == ["context_only"] * 2
        assert not any(each["streaming"] for each in context)
        assert len(first[1].pins) == 2
        engine, llm, heard = second
        engine.submit(asked(n=2, resumed=begun, handed_state=end.handed_state))
        (last,) = heard.wait_for_ends(1)
        generation = llm.submitted[1:]
        assert [each["disaggregated"].request_type for each in generation] == ["generation_only"] * 2
        assert [each["inputs"] for each in generation] == [PROMPT] * 2, "the first token is not part of the prompt"
        assert [each["sampling"].max_tokens for each in generation] == [12] * 2
        assert whole(begun, heard) == wanted
        assert (end.completion_tokens, last.completion_tokens) == (2, 22)
        assert (last.cached_prompt_tokens, last.loaded_prompt_tokens) == (0, 48)
        until(lambda: not first[1].pins)
        first[0].release_held(1)
        until(lambda: first[0].load().free_blocks == first[0].load().total_blocks)
        assert first[1]._pool.used == 0


def test_a_transceiver_is_told_by_settings_and_prefill_runs_without_overlap() -> None:
    with pair() as ((_, first, _), (_, second, _)):
        told = first.arguments["cache_transceiver_config"]
        assert (told.backend, told.max_tokens_in_buffer, told.kv_transfer_timeout_ms) == ("DEFAULT", 512, 60_000)
        assert first.arguments["disable_overlap_scheduler"]
        assert not second.arguments["disable_overlap_scheduler"]
    with pytest.raises(Unsupported, match="runtime"), running(transceiver=Transceiver(runtime="PYTHON")):
        pass
    with pytest.raises(Unsupported, match="kv_cache_config"), running(extra={"kv_cache_config": None}):
        pass


@pytest.mark.parametrize("reason", ["not_finished", "length", None])
def test_however_a_version_calls_the_end_of_a_prompt_it_is_none(reason: str | None) -> None:
    with pair() as (first, _):
        first[1].context_reason = reason
        _, end = handed(first, asked())
        assert end.held_blocks == 3
        assert not first[2].finished


def test_log_probabilities_go_over_too_or_are_missed_without_harm() -> None:
    sampling = Sampling(seed=5, top_logprobs=2)
    with pair() as (first, second):
        for key, forgets in ((1, False), (2, True)):
            begun, end = handed(first, asked(key, sampling=sampling))
            state = json.loads(end.handed_state)
            if forgets:
                del state["0"]["first_gen_log_probs"]
            generation = asked(key, sampling=sampling, resumed=begun, handed_state=json.dumps(state).encode())
            second[0].submit(generation)
            second[2].wait_for_ends(key)
            assert len(second[2].logprobs[key, 0]) == len(second[2].tokens[key, 0]) == 11
    assert second[2].logprobs[1, 0] == second[2].logprobs[2, 0]


def test_a_prefill_worker_that_is_lost_costs_the_prompt_and_no_token() -> None:
    wanted = alone(asked(sampling=GREEDY))
    with pair() as (first, second):
        begun, end = handed(first, asked(sampling=GREEDY))
        first[1].pins.is_up = False
        second[0].submit(asked(sampling=GREEDY, resumed=begun, handed_state=end.handed_state))
        (last,) = second[2].wait_for_ends(1)
        assert last.error is None
        assert whole(begun, second[2]) == wanted
        assert last.loaded_prompt_tokens == 0
        assert second[1].submitted[-1]["inputs"] == [*PROMPT, *begun[0]]


def test_blocks_that_never_come_are_not_waited_for_and_their_request_keeps_its_place() -> None:
    wanted = alone(asked(sampling=GREEDY))
    with pair(decode=replace(DECODE, deadline_seconds=0.05)) as (first, second):
        begun, end = handed(first, asked(sampling=GREEDY))
        engine, llm, heard = second
        llm.fetches_hang = True
        engine.submit(asked(sampling=GREEDY, resumed=begun, handed_state=end.handed_state))
        assert heard.wait_for_ends(1)[0].error is None
        assert whole(begun, heard) == wanted
        assert engine._work._num_strays() == 1
        llm.fetches_hang = False  # they come after all, and nobody wants them any more
        until(lambda: engine._work._num_strays() == 0)
        engine.check_health()


@pytest.mark.parametrize("safe", [False, True])
def test_an_abort_waits_for_the_blocks_unless_that_is_safe(safe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake dies of one in the middle of a transfer, as versions do that cannot cancel it."""
    monkeypatch.setenv("TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL", "1" if safe else "0")
    with pair() as (first, second):
        begun, end = handed(first, asked())
        engine, llm, heard = second
        llm.fetches_hang = True
        engine.submit(asked(resumed=begun, handed_state=end.handed_state))
        until(lambda: any(each.held is not None for each in llm._running))
        engine.abort(1)
        until(lambda: engine._work.running[0].outputs[0].over if engine._work.running else True)
        llm.fetches_hang = False
        (last,) = heard.wait_for_ends(1)
        assert (last.error, last.completion_tokens) == (None, 0)
        until(lambda: not llm._running)
        engine.check_health()


def test_an_engine_that_goes_on_after_another_token_is_not_believed() -> None:
    wanted = alone(asked(sampling=GREEDY))
    with pair() as (first, second):
        begun, end = handed(first, asked(sampling=GREEDY))
        state = json.loads(end.handed_state)
        state["0"]["first_gen_tokens"] = [begun[0][0] + 1]
        second[0].submit(asked(sampling=GREEDY, resumed=begun, handed_state=json.dumps(state).encode()))
        assert second[2].wait_for_ends(1)[0].error is None
        assert whole(begun, second[2]) == wanted


@pytest.mark.parametrize("state", [b"", b"{}", b"nonsense", b'{"0": {"opaque_state": 1}}'])
def test_a_state_that_says_nothing_is_computed(state: bytes) -> None:
    wanted = alone(asked(sampling=GREEDY))
    with pair() as (_, (engine, _, heard)):
        engine.submit(asked(sampling=GREEDY, resumed={0: wanted[0][:1]}, handed_state=state))
        heard.wait_for_ends(1)
        assert heard.tokens[1, 0] == wanted[0][1:]


def test_later_tokens_are_gone_on_after_without_the_blocks() -> None:
    """They know of the first token only."""
    wanted = alone(asked(sampling=GREEDY))
    with pair() as (first, (engine, llm, heard)):
        _, end = handed(first, asked(sampling=GREEDY))
        engine.submit(asked(sampling=GREEDY, resumed={0: wanted[0][:5]}, handed_state=end.handed_state))
        heard.wait_for_ends(1)
        assert heard.tokens[1, 0] == wanted[0][5:]
        assert llm.submitted[-1]["disaggregated"] is None


def test_what_nobody_fetches_is_free_when_the_engines_own_time_is_over() -> None:
    with running(transceiver=replace(PREFILL, timeout_seconds=0.05)) as (engine, llm, heard):
        handed((engine, llm, heard), asked())
        until(lambda: llm._pool.used == 0)
        engine.release_held(1)


def test_a_prompt_that_is_given_up_is_free_at_once_where_transfers_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL", "1")
    with running(transceiver=PREFILL) as (engine, llm, heard):
        handed((engine, llm, heard), asked(n=3))
        assert len(llm.pins) == 3
        engine.release_held(1)
        until(lambda: not llm.pins)
        until(lambda: engine.load().held_blocks == 0)


def test_newer_versions_number_what_they_hand_over() -> None:
    def find(name: str) -> Any:
        return fabric.get_global_disagg_request_id if name.endswith("request_id") else names.find(name)

    with_ids = probe(library(find=find), allow_unknown=False)
    assert with_ids.make_disaggregated_id is None, "the field is what counts"
    can = probe(library(find=find, DisaggregatedParams=params.NumberedDisaggregatedParams), allow_unknown=False)
    assert can.make_disaggregated_id is not None
    first, second = can.make_disaggregated_id(1020), can.make_disaggregated_id(1020)
    assert first != second
    assert first & 0x3FFF == (1020 // 64) << 6 | 1020 % 64
    lib = library("1.3.0rc29", find=find, DisaggregatedParams=params.NumberedDisaggregatedParams)
    with pair(lib, prefill=replace(PREFILL, machine_id=7)) as (one, two):
        begun, end = handed(one, asked())
        number = one[1].submitted[-1]["disaggregated"].disagg_request_id
        assert number & 0x3FFF == 7
        two[0].submit(asked(resumed=begun, handed_state=end.handed_state))
        two[2].wait_for_ends(1)
        assert two[1].submitted[-1]["disaggregated"].disagg_request_id == number


def test_a_guide_goes_over_with_its_prompt_and_is_not_begun_in_its_middle() -> None:
    guide = Unchecked(Guide(GuideKind.REGEX, "[ab]{200}"))
    with pair(model_dir=model_dir()) as (first, second):
        guided = asked(guide=guide, ignore_eos=False)
        begun, end = handed(first, guided)
        second[0].submit(replace(guided, resumed=begun, handed_state=end.handed_state))
        assert second[2].wait_for_ends(1)[0].error is None
        (text,) = [text_of(tokens) for tokens in whole(begun, second[2])]
        assert re.fullmatch("[ab]{12,}", text)
        first[1].pins.is_up = False
        begun, end = handed(first, replace(guided, key=2))
        second[0].submit(replace(guided, key=2, resumed=begun, handed_state=end.handed_state))
        assert isinstance(second[2].wait_for_ends(2)[0].error, Unsupported)


def test_an_output_that_ends_by_its_first_token_leaves_nothing() -> None:
    with running(transceiver=PREFILL) as (engine, llm, heard):
        stops = frozenset(range(engine.info.vocab_size))
        _, end = handed((engine, llm, heard), asked(stop_token_ids=stops))
        assert (end.held_blocks, end.handed_state) == (None, b"")
        assert heard.finished[1, 0].finish_reason is FinishReason.STOP
        assert not llm.pins
