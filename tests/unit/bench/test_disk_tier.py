from __future__ import annotations

from pathlib import Path

from bench.disk_tier import MIB, measure


def test_a_small_run_has_both_rates_or_says_why_not(tmp_path: Path) -> None:
    figures = measure(tmp_path, total_bytes=4 * MIB, block_bytes=MIB // 4, rounds=1)
    (name,) = {*figures.ratios, *figures.missing} - {"fio"}
    assert name == "disk tier / O_DIRECT, blocks of 256 KiB"
    if name in figures.ratios:
        assert "fio" in figures.missing, "what stands for it is said beside the ratio"
        assert figures.goals == {name: 0.8}
        assert figures.ratios[name] > 0
        assert all(rate > 0 for rate in figures.measured.values())
