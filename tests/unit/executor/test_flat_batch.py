"""A step's tokens side by side: where rows end, and whose logits are wanted."""

from __future__ import annotations

import pytest

from contract.engine_contract import request
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.flat_batch import flatten
from weir_executor.paged.sequence import LiveRequest, Sequence
from weir_executor.request import Pooling, PoolingKind, Sampling

_GREEDY = Sampling(temperature=0.0)


def _sequence(key: int, token_ids: list[int], sampling: Sampling = _GREEDY, min_tokens: int = 0) -> Sequence:
    live = LiveRequest(
        request(key, token_ids, sampling=sampling, min_tokens=min_tokens), key, frozenset({2}), False, 0.0
    )
    return Sequence(live, 0, list(token_ids), [], blocks=[key])


def test_rows_stand_side_by_side_and_only_those_that_reach_their_end_want_logits() -> None:
    chunk = Scheduled(_sequence(1, [10, 11, 12, 13, 14]), 1, 3)
    last_chunk = Scheduled(_sequence(2, [20, 21, 22]), 1, 2)
    decode = Scheduled(_sequence(3, [30, 31]), 1, 1)
    flat = flatten([chunk, decode, last_chunk])
    assert [row.sequence.live.key for row in flat.rows] == [3, 1, 2]
    assert flat.token_ids == [31, 11, 12, 13, 21, 22]
    assert flat.positions == [1, 1, 2, 3, 1, 2]
    assert flat.ends == [0, 3, 5]
    assert flat.wanted == [0, 5]


def test_drafts_follow_the_sequences_own_tokens_and_their_logits_are_wanted_too() -> None:
    row = Scheduled(_sequence(1, [10, 11, 12]), 2, 3, draft_token_ids=(7, 8))
    assert row.samples
    flat = flatten([row])
    assert (flat.token_ids, flat.positions) == ([12, 7, 8], [2, 3, 4])
    assert (flat.ends, flat.wanted) == ([2], [0, 1, 2])


def test_rows_that_pool_want_hidden_states_and_no_logits() -> None:
    def pooling(key: int, kind: PoolingKind) -> Sequence:
        asked = request(key, [10, 11, 12, 13], 0, sampling=Sampling(), pooling=Pooling(kind))
        return Sequence(LiveRequest(asked, key, frozenset(), False, 0.0), 0, [10, 11, 12, 13], [], blocks=[key])

    rows = [
        Scheduled(pooling(1, PoolingKind.MEAN), 0, 3),
        Scheduled(pooling(2, PoolingKind.LAST), 0, 3),
        Scheduled(pooling(3, PoolingKind.LAST), 1, 3),
        Scheduled(_sequence(4, [30, 31]), 0, 2),
    ]
    flat = flatten(rows)
    assert (flat.pooled, flat.wanted) == ([0, 1, 2, 8], [10])
    assert flat.best_only


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.5),
        Sampling(temperature=0.0, top_logprobs=0),
        Sampling(temperature=0.0, logit_bias={1: 1.0}),
    ],
)
def test_the_best_is_enough_only_when_all_rows_are_plainly_greedy(sampling: Sampling) -> None:
    plain, other = Scheduled(_sequence(1, [10]), 0, 1), Scheduled(_sequence(2, [10], sampling), 0, 1)
    assert flatten([plain]).best_only
    both = flatten([plain, other])
    assert not both.best_only
    assert both.plain == sampling.is_plain


def test_a_row_that_may_not_stop_yet_needs_all_its_logits() -> None:
    assert not flatten([Scheduled(_sequence(1, [10], min_tokens=1), 0, 1)]).plain
