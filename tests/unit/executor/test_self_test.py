"""The small request: through any worker, leaving the pool as it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.errors import Internal
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.paged.batch import Batch
from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.self_test import run_self_test
from weir_executor.paged.worker import Draw, Result


def _run(engine: FakeEngine) -> None:
    run_self_test(engine._scheduler.pool, engine._limits, engine._loop._worker, engine.info)


@given(st.integers(1, 32), st.integers(1, 4), st.integers(2, 64), st.integers(1, 32))
def test_it_needs_one_block_of_any_size_and_gives_it_back(block: int, blocks: int, length: int, budget: int) -> None:
    config = FakeEngineConfig(
        block_size=block,
        num_blocks=max(blocks, 2 if block == 1 else 1),
        max_model_len=length,
        max_num_seqs=1,
        max_batched_tokens=budget,
    )
    engine = FakeEngine(config)
    before = list(engine._scheduler.pool._empty)
    _run(engine)
    assert engine._scheduler.pool._empty == before
    assert not engine._scheduler.pool.take_events()


def test_one_free_block_is_enough_and_a_cached_prefix_stays() -> None:
    engine = FakeEngine(FakeEngineConfig(num_blocks=3, block_size=4))
    pool = engine._scheduler.pool
    pool.allocate(1)
    (cached,) = pool.allocate(1)
    pool.store(cached, b"hash", b"")
    pool.release([cached])
    _run(engine)
    assert pool.match([b"hash"]) == [cached]
    pool.check_integrity()


@pytest.mark.parametrize("wrong", [Internal("not finite"), [], [Draw(1000)], [Draw(-1)]])
def test_a_result_that_is_wrong_fails_it_and_its_block_is_cleared(
    wrong: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(FakeEngineConfig(vocab_size=1000))
    cleared: list[int] = []
    monkeypatch.setattr(engine._loop._worker, "run", lambda batch: [wrong] * len(batch.scheduled))
    monkeypatch.setattr(engine._loop._worker, "clear_blocks", cleared.extend)
    with pytest.raises(Internal):
        _run(engine)
    assert len(cleared) == 1
    assert engine._scheduler.pool.num_free == engine._scheduler.pool.num_blocks


def test_what_the_worker_raises_comes_through() -> None:
    engine = FakeEngine()
    engine.fail_step(ValueError("a bad kernel"))
    with pytest.raises(ValueError, match="a bad kernel"):
        _run(engine)
    assert engine._scheduler.pool.num_free == engine._scheduler.pool.num_blocks


def test_it_prefills_and_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, counts = FakeEngine(), list[int]()
    compute = engine._fake.run

    def run(batch: Batch) -> Sequence[Result]:
        counts.extend(scheduled.count for scheduled in batch.scheduled)
        return compute(batch)

    monkeypatch.setattr(engine._fake, "run", run)
    _run(engine)
    assert counts == [8, 1, 1]


def test_a_pool_of_its_own_shares_no_state() -> None:
    pool = BlockPool(2)
    engine = FakeEngine()
    run_self_test(pool, engine._limits, engine._loop._worker, engine.info)
    assert pool.num_free == 2
