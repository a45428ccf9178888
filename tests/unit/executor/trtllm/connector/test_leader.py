from __future__ import annotations

import os
from pathlib import Path

import pytest

from unit.executor.trtllm.connector.making import (
    HASHES,
    ROOT,
    SALT,
    SIZE,
    TOKENS,
    ask,
    data,
    new_area,
    new_leader,
    newer_data,
    output,
    prefix,
)
from weir_executor.trtllm.connector import leader as module
from weir_executor.trtllm.connector.area import Area
from weir_executor.trtllm.connector.leader import Leader


@pytest.fixture
def area(tmp_path: Path) -> Area:
    made = new_area(tmp_path)
    made.note_scope(ROOT)
    return made


@pytest.fixture
def leader(area: Area) -> Leader:
    return new_leader(area)


def leases(area: Area) -> int:
    return len(os.listdir(area.path / "leases"))


@pytest.mark.parametrize("newer", [True, False])
def test_a_staged_prefix_is_offered_leased_loaded_and_given_back(area: Area, leader: Leader, newer: bool) -> None:
    area.stage(prefix(0, 3), HASHES)
    request = ask(newer=newer)
    assert leader.get_num_new_matched_tokens(request, 0) == (3 * SIZE, False)
    assert leases(area) == 1
    blocks = [40, 41, 42, 43, 44, 45]
    leader.update_state_after_alloc(request, blocks)
    plan = leader.build_connector_meta(output([data(1, TOKENS, blocks, 0, len(TOKENS) - 12)]))
    (load,) = plan.loads
    assert (load.request_id, load.skip_blocks, list(load.block_ids), load.is_async) == (1, 0, [40, 41, 42], False)
    assert leases(area) == 1, "ranks have not opened it yet"
    (save,) = plan.saves
    assert (save.parent_hash, list(save.hashes), list(save.block_ids)) == (HASHES[2], HASHES[3:], [43, 44])
    assert leader.build_connector_meta(output()).loads == []
    assert (leases(area), leader.leases) == (0, 0)
    assert leader.request_finished(request, blocks)
    assert leader.requests == 0


def test_the_last_token_is_computed_and_what_the_engine_has_is_not_loaded(area: Area, leader: Leader) -> None:
    area.stage(prefix(0, 5), HASHES)
    assert leader.get_num_new_matched_tokens(ask(1, TOKENS[: 5 * SIZE]), SIZE) == (3 * SIZE, False)
    leader.update_state_after_alloc(ask(1), [9, 8, 7, 6, 5])
    (load,) = leader.build_connector_meta(output([data(1, TOKENS[:20], [9, 8, 7, 6, 5], SIZE, 4)])).loads
    assert (load.skip_blocks, list(load.block_ids)) == (1, [8, 7, 6])
    assert leader.get_num_new_matched_tokens(ask(2), 5 * SIZE) == (0, False)
    assert leader.get_num_new_matched_tokens(ask(3), SIZE + 1) == (0, False), "half a block is nobody's"


def test_only_the_same_scope_and_the_same_tokens_find_it(area: Area, leader: Leader) -> None:
    area.stage(prefix(0, 3), HASHES)
    for salt in ("private-7", bytes(16).hex(), None, "x" * 32):
        assert leader.get_num_new_matched_tokens(ask(1, salt=salt), 0) == (0, False)
    assert leader.get_num_new_matched_tokens(ask(2, [0, *TOKENS[1:]]), 0) == (0, False)
    assert leader.get_num_new_matched_tokens(ask(3, newer=False, salt="private-7"), 0) == (0, False)
    assert leader.get_num_new_matched_tokens(ask(4), 0) == (12, False)


def test_much_is_loaded_beside_the_batch_and_its_blocks_are_kept_meanwhile(area: Area) -> None:
    leader = new_leader(area, sync_blocks=2)
    area.stage(prefix(0, 3), HASHES)
    request, blocks = ask(), [4, 5, 6, 7, 8, 9]
    assert leader.get_num_new_matched_tokens(request, 0) == (3 * SIZE, True)
    leader.update_state_after_alloc(request, blocks)
    (load,) = leader.build_connector_meta(output()).loads
    assert load.is_async
    assert leader.request_finished(request, blocks), "it was aborted, and they are still written to"
    # Another that is not aborted comes in once it is loaded, and its position holds what was loaded.
    area.stage(prefix(0, 3), HASHES)
    leader.get_num_new_matched_tokens(ask(2), 0)
    leader.update_state_after_alloc(ask(2), blocks)
    leader.build_connector_meta(output())
    (save,) = leader.build_connector_meta(output([data(2, TOKENS, blocks, 12, 11)])).saves
    assert list(save.hashes) == HASHES[3:]


def test_the_ranks_hear_of_a_load_that_will_not_come(area: Area) -> None:
    """The engine parks whoever loads beside the batch from the moment that this was offered."""
    leader = new_leader(area, sync_blocks=2)
    area.stage(prefix(0, 3), HASHES)
    assert leader.get_num_new_matched_tokens(ask(1), 0) == (3 * SIZE, True)
    leader.update_state_after_alloc(ask(1), [4, 5, 6, 7, 8, 9])
    assert not leader.request_finished(ask(1), [4, 5, 6, 7, 8, 9]), "nothing copies into them"
    plan = leader.build_connector_meta(output())
    assert (plan.loads, plan.withdrawn) == ([], [1])
    assert leader.build_connector_meta(output()).withdrawn == []
    assert (leader.leases, leader.requests, area.sweep()) == (0, 0, 0)


def test_prompts_in_chunks_and_generated_tokens_are_saved_as_they_become_whole(leader: Leader) -> None:
    request = ask(1, TOKENS, newer=False)
    leader.get_num_new_matched_tokens(request, 0)
    plan = leader.build_connector_meta(output([data(1, TOKENS, [1, 2, 3, 4, 5, 6], 0, 9)]))
    assert [list(save.hashes) for save in plan.saves] == [HASHES[:2]]
    plan = leader.build_connector_meta(output(cached=[data(1, [], [], 9, 14)]))
    assert [list(save.block_ids) for save in plan.saves] == [[3, 4, 5]]
    plan = leader.build_connector_meta(output(cached=[data(1, [77], [], len(TOKENS), 1)]))
    assert [list(save.block_ids) for save in plan.saves] == [[6]], "the 24th token makes it whole"
    assert plan.saves[0].parent_hash == HASHES[4]
    assert leader.request_finished(request, [1, 2, 3, 4, 5, 6])


def test_blocks_of_what_saved_nothing_are_free_at_once(leader: Leader) -> None:
    request = ask(1, TOKENS[:3])
    leader.get_num_new_matched_tokens(request, 0)
    leader.build_connector_meta(output([data(1, TOKENS[:3], [1], 0, 3)]))
    assert not leader.request_finished(request, [1])
    assert not leader.request_finished(ask(2), [1]), "it was never scheduled"


def test_what_is_offered_and_not_taken_is_given_back(area: Area, leader: Leader) -> None:
    area.stage(prefix(0, 3), HASHES)
    for end in (
        lambda: leader.cancel_load(ask(), 0, 12),
        lambda: leader.request_reset(ask()),
        lambda: leader.request_finished(ask(), []),
    ):
        assert leader.get_num_new_matched_tokens(ask(), 0)[0]
        assert leader.get_num_new_matched_tokens(ask(), 0)[0], "asked again, it is one lease"
        assert leases(area) == 1
        end()
        assert (leases(area), leader.leases) == (0, 0)


def test_what_begins_anew_is_saved_anew_and_still_kept(leader: Leader) -> None:
    told = data(1, TOKENS, [1, 2, 3, 4, 5, 6], 0, len(TOKENS))
    leader.get_num_new_matched_tokens(ask(), 0)
    assert len(leader.build_connector_meta(output([told])).saves) == 1
    leader.request_reset(ask())
    leader.get_num_new_matched_tokens(ask(), 0)
    (save,) = leader.build_connector_meta(output([data(1, TOKENS, [9, 8, 7, 6, 5, 4], 0, 4)])).saves
    assert list(save.block_ids) == [9]
    assert leader.request_finished(ask(), [])


def test_a_folder_that_fails_is_a_miss(area: Area, leader: Leader, caplog: pytest.LogCaptureFixture) -> None:
    area.close()
    assert leader.get_num_new_matched_tokens(ask(), 0) == (0, False)
    assert leader.counts["failed"] == 1
    assert "cannot be offered" in caplog.text


def test_offers_that_nobody_comes_back_for_are_bounded(
    area: Area, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_OFFERS", 2)
    area.stage(prefix(0, 3), HASHES)
    for request_id in range(5):
        assert leader.get_num_new_matched_tokens(ask(request_id), 0)[0]
    assert (leases(area), leader.leases) == (2, 2)


def test_requests_beyond_the_bound_are_not_followed(leader: Leader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_REQUESTS", 1)
    for request_id in (1, 2):
        leader.get_num_new_matched_tokens(ask(request_id), 0)
        plan = leader.build_connector_meta(output([data(request_id, TOKENS, [1, 2, 3, 4, 5, 6], 0, 23)]))
        assert len(plan.saves) == (request_id == 1)
    assert not leader.request_finished(ask(2), [])
    assert leader.requests == 1


@pytest.mark.parametrize("groups", [[[1, 2, 3, 4, 5, 6]], {0: [1, 2, 3, 4, 5, 6]}])
def test_newer_versions_may_tell_blocks_by_group(leader: Leader, groups: object) -> None:
    leader.get_num_new_matched_tokens(ask(), 0)
    told = newer_data(1, TOKENS, [], 0, len(TOKENS), groups=groups, salt=SALT)
    (save,) = leader.build_connector_meta(output([told])).saves
    assert list(save.block_ids) == [1, 2, 3, 4, 5]


def test_an_engine_that_does_not_tell_of_the_blocks_beforehand_tells_them_now(area: Area, leader: Leader) -> None:
    area.stage(prefix(0, 3), HASHES)
    leader.get_num_new_matched_tokens(ask(), 0)
    (load,) = leader.build_connector_meta(output([data(1, TOKENS, [6, 5, 4, 3, 2, 1], 0, 11)])).loads
    assert list(load.block_ids) == [6, 5, 4]
