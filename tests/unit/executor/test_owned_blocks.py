"""What running sequences own, against the pool's own counts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.engine_contract import hashes, prompt, request
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.owned_blocks import OwnedBlocks
from weir_executor.paged.sequence import LiveRequest, Sequence, new_sequences
from weir_executor.paged.tenants import TenantLimits, Tenants

_BLOCK = 4


def _owned(num_blocks: int = 16, **limits: TenantLimits) -> tuple[BlockPool, OwnedBlocks]:
    pool = BlockPool(num_blocks)
    return pool, OwnedBlocks(pool, Tenants(limits), _BLOCK)


def _sequence(length: int, tenant: str = "acme") -> Sequence:
    tokens = prompt(length)
    asked = request(1, tokens, block_hashes=hashes(tokens, _BLOCK), cache_scope=b"scope", tenant=tenant)
    live = LiveRequest(asked, 1, frozenset(), shares_blocks=True, submitted_at=0.0)
    live.sequences = new_sequences(live, _BLOCK)
    return live.sequences[0]


def test_room_for_tokens_is_counted_in_whole_blocks() -> None:
    _, owned = _owned()
    assert [owned.num_for(tokens) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 5), st.sampled_from(["acme", "zoo"])), max_size=6))
@settings(max_examples=60)
def test_what_begins_grows_and_ends_leaves_nothing(shapes: list[tuple[int, int, str]]) -> None:
    pool, owned = _owned(64)
    running: list[Sequence] = []
    nothing_held = [0] * pool.num_blocks
    for length, more, tenant in shapes:
        running.append(sequence := _sequence(length, tenant))
        owned.begin(sequence, running[0].blocks[: (length - 1) // _BLOCK])
        owned.grow(sequence, more)
        owned.check_integrity(running, nothing_held)
        owned.give_surplus_back(sequence)
        assert len(sequence.blocks) == owned.num_for(length)
        owned.check_integrity(running, nothing_held)
    while running:
        owned.end(running.pop())
        owned.check_integrity(running, nothing_held)
    assert pool.num_free == 64
    assert not owned.use.slots
    assert not owned.use.blocks


def test_full_blocks_are_news_unless_they_were_loaded_or_are_known() -> None:
    pool, owned = _owned()
    first, second = _sequence(14), _sequence(14)
    owned.begin(first, [])
    first.num_computed = 14
    new = owned.store_full(first, computed_from=_BLOCK)  # the first block came from the store
    assert [block.block_id for block in new] == first.blocks[1:3]
    assert [block.parent_block_hash for block in new] == first.block_hashes[:2]
    assert {(block.cache_scope, block.tenant) for block in new} == {(b"scope", "acme")}
    assert pool.match(first.block_hashes) == first.blocks[:3]
    assert owned.store_full(first, computed_from=0) == []
    owned.begin(second, [])
    second.num_computed = 14
    assert owned.store_full(second, computed_from=0) == []


def test_unshared_is_what_nobody_else_owns_or_can_find() -> None:
    pool, owned = _owned()
    first, second = _sequence(14), _sequence(14)
    owned.begin(first, [])
    owned.begin(second, first.blocks[:2])
    assert owned.unshared([first]) == sorted(first.blocks[2:])
    assert owned.unshared([first, second]) == sorted({*first.blocks, *second.blocks})
    pool.store(first.blocks[0], first.block_hashes[0], b"")
    assert owned.unshared([first, second]) == sorted({*first.blocks[1:], *second.blocks[2:]})


def test_a_reference_that_nobody_owns_is_seen() -> None:
    pool, owned = _owned()
    sequence = _sequence(14)
    owned.begin(sequence, [])
    held = [0] * pool.num_blocks
    pool.share(sequence.blocks[:1])
    with pytest.raises(AssertionError):
        owned.check_integrity([sequence], held)
    held[sequence.blocks[0]] = 1
    owned.check_integrity([sequence], held)


@pytest.mark.parametrize("limits", [TenantLimits(max_blocks=3), TenantLimits(max_num_seqs=1)])
def test_a_quota_that_is_exceeded_is_seen(limits: TenantLimits) -> None:
    pool, owned = _owned(acme=limits)
    running = [_sequence(12)]
    owned.begin(running[0], [])
    owned.check_integrity(running, [0] * pool.num_blocks)
    running.append(_sequence(4))
    owned.begin(running[1], [])
    with pytest.raises(AssertionError):
        owned.check_integrity(running, [0] * pool.num_blocks)
