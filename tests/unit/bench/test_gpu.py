"""The GPU bench where there is no GPU: all of its script, its formulas, and what it says when it cannot measure."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from bench.gpu.__main__ import GOALS
from bench.gpu.roofline import Roofline
from bench.gpu.shape import LLAMA_3_8B, TINY


def _run(*arguments: str) -> tuple[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments], capture_output=True, text=True, check=True, cwd="tests"
    )
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_whole_script_runs_on_a_tiny_shape() -> None:
    printed, last = _run("--dry-run")
    assert "Share of the device's limit" in printed
    of_peers = {f"{peer}_{label}" for peer in ("generate", "continuous") for label in ("1", "2", "3", "prefill")}
    assert last["ratios"].keys() == of_peers | {"decode_1", "decode_2", "decode_3", "prefill"}
    assert all(ratio > 0 for ratio in last["ratios"].values())
    assert (last["goals"], "pending" in last) == ({}, False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is something to measure")
def test_without_a_device_it_says_that_figures_are_pending() -> None:
    printed, last = _run()
    assert "no CUDA device here: nothing was measured" in printed
    assert (last["ratios"], last["goals"], last["short"]) == ({}, GOALS, list(GOALS))
    assert last["pending"] == last["missing"]["cuda"]


def test_the_shape_is_that_of_eight_billion_parameters() -> None:
    assert LLAMA_3_8B.matrix_parameters + 128256 * 4096 == pytest.approx(8.03e9, rel=1e-3)
    assert LLAMA_3_8B.kv_bytes_per_token == 131072
    assert TINY.layer_parameters == 64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 128


def test_limits_are_bytes_by_bandwidth_and_products_by_rate() -> None:
    memory_bound = Roofline(bytes_per_second=3e12, flops_per_second=1e30)
    weights = LLAMA_3_8B.matrix_parameters * 2
    assert memory_bound.decode_seconds(LLAMA_3_8B, 1, 0) == pytest.approx(weights / 3e12)
    more = memory_bound.decode_seconds(LLAMA_3_8B, 128, 200) - memory_bound.decode_seconds(LLAMA_3_8B, 128, 0)
    assert more == pytest.approx(128 * 200 * 131072 / 3e12)
    compute_bound = Roofline(bytes_per_second=1e30, flops_per_second=8e14)
    per_token = 2 * (LLAMA_3_8B.matrix_parameters - 128256 * 4096)
    attention = 4 * 32 * 4096 * (1 + 2 + 3)  # each token sees itself and those before
    assert compute_bound.prefill_seconds(LLAMA_3_8B, [3]) == pytest.approx((3 * per_token + attention) / 8e14)


def test_the_bare_engine_needs_nothing_that_only_sends_errors() -> None:
    code = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "grpc_status" or name.startswith("google.rpc"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from bench.gpu import bare_image
bare_image.complete()
import weir_executor.paged.engine
from weir_chassis.errors import InvalidArgument
assert InvalidArgument("field", "is wrong").message
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd="tests")
