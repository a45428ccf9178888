from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unit.executor.trtllm.connector.making import HASHES, ROOT, SIZE, TOKENS
from weir.kvstore.v1.block_hash import block_hashes
from weir_executor.trtllm.connector.requests import Chain, Tracked


@given(st.lists(st.lists(st.integers(0, 1000), max_size=9), max_size=6), st.integers(1, 5))
def test_a_chain_is_the_contracts_however_its_tokens_come(parts: list[list[int]], size: int) -> None:
    chain = Chain(ROOT, size)
    for part in parts:
        chain.tokens.extend(part)
        chain.hashes(len(chain.tokens) // size)
    tokens = [token for part in parts for token in part]
    assert chain.hashes(1 << 20) == block_hashes(ROOT, tokens, size)


def test_no_more_is_hashed_than_is_asked_for() -> None:
    chain = Chain(ROOT, SIZE)
    chain.tokens.extend(TOKENS)
    assert list(chain.hashes(2)) == HASHES[:2]
    assert list(chain.hashes(9)) == HASHES


def tracked(block_ids: list[int], saved: int = 0) -> Tracked:
    made = Tracked(Chain(ROOT, SIZE), saved=saved)
    made.extend(TOKENS, block_ids)
    return made


def test_each_block_is_saved_once_when_all_its_positions_are_valid() -> None:
    request = tracked([50, 51, 52, 53, 54, 55])
    (first,) = request.saves(7, 11, SIZE)
    assert (first.request_id, first.root, first.parent_hash) == (7, ROOT, b"")
    assert (list(first.hashes), list(first.block_ids)) == (HASHES[:2], [50, 51])
    assert list(request.saves(7, 11, SIZE)) == []
    (second,) = request.saves(7, 1000, SIZE)
    assert (second.parent_hash, list(second.hashes), list(second.block_ids)) == (HASHES[1], HASHES[2:], [52, 53, 54])
    assert request.has_saves


def test_what_the_engine_or_the_store_had_is_not_saved() -> None:
    request = tracked([50, 51, 52], saved=2)
    assert list(request.saves(1, 2 * SIZE, SIZE)) == []
    assert not request.has_saves
    (save,) = request.saves(1, 1000, SIZE)
    assert (save.parent_hash, list(save.hashes)) == (HASHES[1], HASHES[2:3]), "no more than there are blocks"


def test_a_layer_that_has_no_block_there_breaks_a_run() -> None:
    request = tracked([50, -1, -1, 53, 54])
    saves = list(request.saves(1, 1000, SIZE))
    assert [list(save.block_ids) for save in saves] == [[50], [53, 54]]
    assert [save.parent_hash for save in saves] == [b"", HASHES[2]]


def test_what_shares_nothing_has_nothing_to_save() -> None:
    request = Tracked(None)
    request.extend(TOKENS, [1, 2, 3, 4, 5])
    assert list(request.saves(1, 1000, SIZE)) == []
