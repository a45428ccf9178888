"""The randomised run over the real loop, scheduler and pool. `make chaos` makes longer ones."""

from __future__ import annotations

import logging
import random

import pytest

from chaos.integrity import Run


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # steps that are told to fail are no news


@pytest.mark.parametrize("seed", [1, 2, 3, pytest.param(random.randrange(2**32), id="drawn")])
def test_ten_thousand_random_operations_leak_no_block_and_own_none_twice(seed: int) -> None:
    """2,500 for each of four seeds, the last of them drawn anew each time."""
    print(f"repeat with: python -m chaos.integrity --seed {seed} --operations 2500")
    counts = Run(seed).go(2500)
    assert counts["leaks"] == 0
    assert counts["computed after cancel"] == 0
    assert min(counts[kind] for kind in ("submit", "cancel", "preempt", "fail step", "ended well")) > 10


def test_a_leak_would_be_seen() -> None:
    run = Run(5)
    release = run.engine._scheduler.pool.release
    run.engine._scheduler.pool.release = lambda block_ids: release(list(block_ids)[1:])  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        run.go(2500)
