from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

import pytest

from bench import disk_tier
from bench.disk_tier import MIB, measure

DIRECT, FIO = (f"disk tier / {name}, blocks of 256 KiB" for name in ("O_DIRECT", "fio"))


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tier, "_REST_SECONDS", 0.0)


def test_a_small_run_has_all_rates_or_says_why_not(tmp_path: Path) -> None:
    figures = measure(tmp_path, total_bytes=4 * MIB, block_bytes=MIB // 4, rounds=1)
    assert figures.ratios.keys() | figures.missing.keys() == {DIRECT, FIO}
    assert figures.goals == dict.fromkeys(figures.ratios, 0.8)
    assert all(rate > 0 for rate in (*figures.ratios.values(), *figures.measured.values()))
    if shutil.which("fio") is None:
        assert FIO in figures.missing, "what stands for it is said beside the ratio"


def test_fio_reads_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is asked and what is taken of its answer; `fio-3.42 --output-format=json` answers so."""
    script = tmp_path / "fio"
    script.write_text(
        f"""#!{sys.executable}
import json, os, sys
(path,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--filename=")]
assert os.stat(path).st_size >= {4 * MIB} and "--direct=1" in sys.argv and "--readonly" in sys.argv
print(json.dumps({{"jobs": [{{"error": 0, "read": {{"bw_bytes": 2_000_000_000}}}}]}}))
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    figures = measure(tmp_path, total_bytes=4 * MIB, block_bytes=MIB // 4, rounds=1)
    assert figures.measured["disk with fio, GB/s"] == 2.0
    assert figures.ratios[FIO] == pytest.approx(figures.measured["disk tier beside fio, GB/s"] / 2.0)
    assert figures.goals[FIO] == 0.8


def test_that_fio_fails_is_not_that_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fio").write_text(f"#!{sys.executable}\nraise SystemExit(1)\n")
    (tmp_path / "fio").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    figures = measure(tmp_path, total_bytes=4 * MIB, block_bytes=MIB // 4, rounds=1)
    expected = "without O_DIRECT" if DIRECT in figures.missing else "ended with an error"
    assert expected in figures.missing[FIO]
