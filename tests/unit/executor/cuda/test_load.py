"""Which way of computing a CUDA device gets, and what it takes to refuse the kernels."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch

from models_fixture import tiny_model
from weir_executor.paged.cuda import build, load
from weir_executor.paged.cuda.attention import TritonAttention
from weir_executor.paged.cuda.decoder import CudaDecoder
from weir_executor.paged.decoder import TorchDecoder
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.config import LayerAttention
from weir_executor.paged.model.registry import load_config
from weir_executor.paged.workload import Workload


def _workload() -> Workload:
    directory = tiny_model("llama3")
    return Workload(directory, load_config(directory), torch.float32, 64, 4, 16, max_num_seqs=2, max_batched_tokens=8)


def test_kernels_that_agree_are_taken(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    computed = load.load_cuda(_workload(), device)
    assert isinstance(computed.decoder, CudaDecoder)
    assert computed.looks_ahead
    assert "by our Triton kernels" in caplog.text
    assert not any(computed.blocks.read_blocks([0])[0])  # the proof left nothing behind


def test_kernels_that_disagree_are_refused_in_one_line(
    device: torch.device, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TritonAttention

    def scaled_wrong(cache: Any, heads: int, layers: Any, numbers: int) -> Any:
        return made(cache, heads, [replace(layer, scale=layer.scale * 3) for layer in layers], numbers)

    monkeypatch.setattr(build, "TritonAttention", scaled_wrong)
    computed = load.load_cuda(_workload(), device)
    assert isinstance(computed.decoder, TorchDecoder)
    assert not computed.looks_ahead
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "KernelsDisagreeError: layer 2: attention differs by" in record.getMessage()


def test_every_way_of_scoring_is_proved(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = _workload()
    layers = (*workload.model.attention[:2], LayerAttention(0.3, window=2))
    made = TritonAttention
    monkeypatch.setattr(build, "TritonAttention", lambda c, h, _, n: made(c, h, [layers[0]] * 3, n))
    wrong = replace(workload, model=replace(workload.model, attention=layers))
    with pytest.raises(build.KernelsDisagreeError, match="layer 2"):
        load._by_kernels(wrong, _Model(), KvCache(wrong.model, 4, 4, torch.float32, device))  # type: ignore[arg-type]


class _Model:
    """Refused before it is looked at."""


def test_without_triton_pytorch_does_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    assert isinstance(load.load_cuda(_workload(), torch.device("cpu")).decoder, TorchDecoder)
    assert "triton is not installed" in caplog.text
