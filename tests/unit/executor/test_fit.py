"""A model that does not fit is refused with the numbers, before it is loaded or when the device runs out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models_fixture import tiny_model
from weir_executor.paged import fit
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.model.config import ModelConfigError

_CPU = torch.device("cpu")


def test_a_cache_that_does_not_fit_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "free_bytes", lambda _: 1 << 20)
    with pytest.raises(
        ModelConfigError, match=r"KV blocks 1.00 GiB, 0.00 GiB are free: \d+ blocks \(\d+ bytes\) would"
    ):
        load_engine(PagedEngineConfig(tiny_model("llama3")))
    monkeypatch.setattr(fit, "free_bytes", lambda _: 1 << 10)
    with pytest.raises(ModelConfigError, match="not even the weights do fit"):
        load_engine(PagedEngineConfig(tiny_model("llama3"), num_blocks=4))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_device_that_runs_out_all_the_same_is_explained(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def build(*_: object) -> None:
        raise error

    monkeypatch.setattr("weir_executor.paged.engine.build_compute", build)
    with pytest.raises(ModelConfigError, match=r"out of memory while loading: weights take 0\.00 GiB and 4 KV blocks"):
        load_engine(PagedEngineConfig(tiny_model("llama3"), num_blocks=4))


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr("weir_executor.paged.engine.build_compute", build)
    with pytest.raises(RuntimeError, match="no such device"):
        load_engine(PagedEngineConfig(tiny_model("llama3"), num_blocks=4))


def test_free_is_what_the_system_and_the_container_both_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert fit.free_bytes(_CPU, meminfo, tmp_path) is None
    meminfo.write_text("MemTotal:       100 kB\nMemAvailable:       64 kB\n")
    assert fit.free_bytes(_CPU, meminfo, tmp_path) == 64 << 10
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("50000\n")
    (tmp_path / "memory.stat").write_text("anon 40000\ninactive_file 8000\n")
    assert fit.free_bytes(_CPU, meminfo, tmp_path) == 64 << 10
    (tmp_path / "memory.max").write_text("60000\n")
    assert fit.free_bytes(_CPU, meminfo, tmp_path) == 18000


def test_the_process_says_so_in_one_line_and_exits_with_2(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("llama3"), directory)
    (directory / "tokenizer.json").write_text("{}")
    asked = {"MODEL_DIR": str(directory), "MODEL": "tiny", "KV_CACHE_BYTES": str(1 << 50)}
    environment = {**os.environ, **{f"WEIR_EXECUTOR_{name}": value for name, value in asked.items()}}
    done = subprocess.run(
        [sys.executable, "-m", "weir_executor"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "out of memory: weights take 0.00 GiB" in last
    assert "KV blocks 1048576.00 GiB" in last
