"""The same tests twice: in Triton's interpreter on a CPU, and compiled on a CUDA device (`pytest -m cuda`)."""

from __future__ import annotations

import pytest
import torch

from bench.gpu import bare_image

bare_image.complete()  # before any module of ours is imported


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if (request.param == "cuda") != torch.cuda.is_available():
        pytest.skip("no CUDA device" if request.param == "cuda" else "Triton compiles for the CUDA device here")
    return torch.device(request.param)


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    kind = getattr(torch, request.param)
    assert isinstance(kind, torch.dtype)
    return kind
