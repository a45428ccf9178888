"""Every launch of an 8B model compiles for devices that are not here: Triton needs no GPU to make a binary for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Shared memory that one program may have, by compute capability (CUDA C++ Programming Guide, technical specifications).
_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@pytest.mark.slow
def test_every_launch_compiles_and_fits_its_device(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, environment.get("PYTHONPATH", "")]))
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["target"] for r in reports} == set(_SHARED_BYTES)
    for report in reports:
        assert report["shared"] <= _SHARED_BYTES[report["target"]], report
        assert report["stack"] == 0, report
        if report["kernel"] == "attend":
            assert report["pipelined"], report
    attends = [r for r in reports if r["kernel"] == "attend"]
    assert len(attends) == 9  # of three models: decodes in splits, decodes in one, chunks
