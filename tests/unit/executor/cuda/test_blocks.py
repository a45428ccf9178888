"""Blocks by pinned memory are the blocks that the cache itself reads and writes."""

from __future__ import annotations

import pytest
import torch

from models_fixture import tiny_model
from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.cuda import blocks as module
from weir_executor.paged.cuda.blocks import CudaBlocks
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.registry import load_config


@pytest.fixture
def cache(device: torch.device, dtype: torch.dtype) -> KvCache:
    cache = KvCache(load_config(tiny_model("llama3")), 9, 4, dtype, device)
    for layer in range(3):
        for part in cache.layer_blocks(layer):
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(layer)))
    return cache


def test_payloads_are_the_caches_own(cache: KvCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 2)
    blocks = CudaBlocks(cache)
    for block_ids in ([3], [7, 0, 3, 1, 8], []):
        assert blocks.read_blocks(block_ids) == cache.read_blocks(block_ids)


def test_what_is_written_is_read_again(cache: KvCache) -> None:
    blocks = CudaBlocks(cache)
    (payload,) = blocks.read_blocks([2])
    assert blocks.is_sound(payload)
    assert len(payload) == blocks.block_bytes
    blocks.write_blocks([BlockLoad(5, payload)])
    blocks.clear_blocks([2])
    cleared, written = blocks.read_blocks([2, 5])
    assert written == payload
    assert not any(cleared)
    assert not blocks.is_sound(payload[:-2] + b"\xff\x7f" if cache.dtype is not torch.float32 else payload[:-1])
