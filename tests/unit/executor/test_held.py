"""Held blocks beside a plain model of them: whatever happens, every reference is somebody's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.held import HeldBlocks

_NUM_BLOCKS = 12
_ACTIONS = st.lists(st.tuples(st.sampled_from(["hold", "release", "drop"]), st.integers(0, 7), st.integers(0, 8)))


@given(_ACTIONS)
def test_references_are_those_of_the_holds_and_half_of_the_pool_at_most(actions: list[tuple[str, int, int]]) -> None:
    pool = BlockPool(_NUM_BLOCKS)
    held, model, used = HeldBlocks(pool), dict[int, list[int]](), set[int]()
    for action, key, count in actions:
        if action == "hold" and key not in used:
            used.add(key)
            owned = pool.allocate(min(count, pool.num_free))
            held.hold(key, owned)
            pool.release(owned)  # the request that computed them has ended
            _model_hold(model, key, owned)
        elif action == "release":
            held.release(key)
            model.pop(key, None)
        elif action == "drop" and held:
            held.drop_oldest()
            del model[next(iter(model))]
        assert held.num_blocks == sum(map(len, model.values())) <= _NUM_BLOCKS // 2
        assert all(list(held.of(key)) == model.get(key, []) for key in range(8))
        assert held.references() == [pool.references(block_id) for block_id in range(_NUM_BLOCKS)]
        pool.check_integrity()
    held.drop_all()
    assert (pool.num_free, bool(held)) == (_NUM_BLOCKS, False)


def _model_hold(model: dict[int, list[int]], key: int, block_ids: list[int]) -> None:
    if not 0 < len(block_ids) <= _NUM_BLOCKS // 2:
        return
    while sum(map(len, model.values())) + len(block_ids) > _NUM_BLOCKS // 2:
        del model[next(iter(model))]
    model[key] = block_ids
