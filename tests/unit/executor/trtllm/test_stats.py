from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.engine_contract import prompt, request
from weir_executor.foreign.live import LiveRequest, begin
from weir_executor.foreign.load_report import Iteration, load
from weir_executor.trtllm.cursor import Cursor
from weir_executor.trtllm.stats import add

TOLD = {
    "iter": 7,
    "iterLatencyMS": 12.5,
    "kvCacheStats": {"maxNumBlocks": 100, "usedNumBlocks": 30},
    "inflightBatchingStats": {"numScheduledRequests": 3, "numCtxTokens": 64, "numGenRequests": 2},
    "specDecodingStats": {"numDraftTokens": 4},
}


@pytest.mark.parametrize("told", [TOLD, json.dumps(TOLD)], ids=["dict", "text"])
def test_an_item_in_either_form_is_counted(told: Any) -> None:
    known = add(add(Iteration(), told), told)
    assert (known.steps, known.total_blocks, known.used_blocks) == (2, 100, 30)
    assert (known.seconds, known.busy_seconds) == (0.0125, 0.025)
    assert (known.prefill_tokens, known.decode_tokens, known.draft_tokens) == (128, 12, 8)
    assert known.batch is not None
    assert (known.batch.sequences, known.batch.decode_tokens) == (3, 6)


NAMES = st.sampled_from([*TOLD, "numCtxTokens", "maxNumBlocks"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)


@given(ANYTHING)
def test_nothing_that_is_told_is_an_error(told: Any) -> None:
    known = Iteration(total_blocks=9)
    assert add(known, told).total_blocks >= 0


def live(key: int, tokens: int, max_tokens: int) -> LiveRequest:
    return begin(request(key, prompt(tokens), max_tokens, n=2), lambda _: Cursor(2, None), now=0.0)


def shown(running: list[LiveRequest], waiting: list[LiveRequest], iteration: Iteration) -> Any:
    return load(
        iteration,
        running,
        waiting,
        total_blocks=50,
        cached_blocks=70,
        progress=1,
        steps=3,
        chunk_tokens=8,
        prefill_token_seconds=None,
    )


def test_what_is_owed_is_counted_by_us_and_blocks_by_the_engine() -> None:
    iteration = add(Iteration(), TOLD)
    found = shown([live(1, 10, 5)], [live(2, 20, 7)], iteration)
    assert (found.outstanding_prefill_tokens, found.outstanding_tokens) == (30, 30 + 10 + 14)
    assert (found.waiting_requests, found.free_blocks, found.total_blocks) == (1, 70, 100)
    assert found.step == 3


def test_where_nothing_lives_nothing_is_used_whatever_was_told_last() -> None:
    found = shown([], [], add(Iteration(), TOLD))
    assert (found.free_blocks, found.outstanding_tokens) == (100, 0)
    assert shown([], [], Iteration()).total_blocks == 50
