"""A small run of `make chaos-kvstore`, of one seed."""

from __future__ import annotations

import pytest

from chaos.kvstore_run import Run, is_clean, summary


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_wrong_nothing_lost_nothing_leaked(seed: int) -> None:
    counts = await Run(seed).go(10_000)
    assert is_clean(counts), summary(counts)
    injected = {key for key, times in counts.items() if key.startswith("injected ") and times}
    assert len(injected) >= 11, "nearly every kind of fault has happened"
    assert counts["corrupt"] > 50, "and was found"
    assert counts["blocks read"] > 1000
    assert all(counts[what] for what in ("evicted", "expired", "promoted", "demoted"))
