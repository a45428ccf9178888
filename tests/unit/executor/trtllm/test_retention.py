from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from contract.engine_contract import hashes, prompt, request
from fakes.trtllm.llm import library
from unit.executor.trtllm.making import running
from weir_executor.trtllm.retention import DEFAULT_PRIORITY, Retention, make_retention

PRIORITIES, SECONDS = st.integers(0, 100), st.none() | st.floats(0.001, 1e6)
ROOT = b"contract tests.."


@given(st.builds(Retention, PRIORITIES, SECONDS, PRIORITIES, SECONDS))
def test_what_others_may_find_is_kept_as_it_is_set(asked: Retention) -> None:
    told = make_retention(library(), asked, is_shared=True)
    if told is None:
        assert asked == Retention(DEFAULT_PRIORITY, None, DEFAULT_PRIORITY, None)
        return
    (prompt_range,) = told.token_range_retention_configs
    assert (prompt_range.token_start, prompt_range.token_end) == (0, None), "all of the prompt"
    assert prompt_range.priority == asked.prompt_priority
    assert told.decode_retention_priority == asked.output_priority
    for found, seconds in (
        (prompt_range.duration_ms, asked.prompt_seconds),
        (told.decode_duration_ms, asked.output_seconds),
    ):
        assert found == (None if seconds is None else timedelta(seconds=seconds))


@given(st.builds(Retention, PRIORITIES, SECONDS, PRIORITIES, SECONDS))
def test_what_nobody_can_find_goes_first(asked: Retention) -> None:
    told = make_retention(library(), asked, is_shared=False)
    assert told.token_range_retention_configs[0].priority == told.decode_retention_priority == 0


def test_the_engine_is_told_with_each_request_where_it_can_be() -> None:
    tokens, kept = prompt(40), Retention(prompt_priority=80)
    shared = request(1, tokens, 2, block_hashes=hashes(tokens, 16), cache_scope=ROOT)
    with running(retention=kept) as (engine, llm, heard):
        engine.submit(shared)
        engine.submit(request(2, tokens, 2))
        heard.wait_for_ends(1, 2)
        told = [each["retention"].token_range_retention_configs[0].priority for each in llm.submitted[1:]]
        assert sorted(told) == [0, 80]
    with running() as (engine, llm, heard):
        engine.submit(shared)
        heard.wait_for_ends(1)
        assert llm.submitted[-1]["retention"] is None, "as the engine does it by itself"
    with running(library(KvCacheRetentionConfig=None), retention=kept) as (engine, llm, heard):
        engine.submit(shared)
        assert heard.wait_for_ends(1)[0].error is None
        assert llm.submitted[-1]["retention"] is None
