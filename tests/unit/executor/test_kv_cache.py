"""Where a token's keys and values are written, gathered from, and found in a block's payload."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models_fixture import tiny_model
from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.registry import load_config

_CPU = torch.device("cpu")
_BLOCK = 4


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def cache(request: pytest.FixtureRequest) -> KvCache:
    return KvCache(load_config(Path(tiny_model("llama3"))), 10, _BLOCK, request.param, _CPU)


def _tokens(cache: KvCache, count: int, seed: int = 1) -> torch.Tensor:
    shape = (count, cache.num_kv_heads, cache.head_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(cache.dtype)


def _write(cache: KvCache, blocks: list[int], keys: torch.Tensor, values: torch.Tensor, layer: int = 1) -> None:
    slots = [blocks[place // _BLOCK] * _BLOCK + place % _BLOCK for place in range(len(keys))]
    cache.write(layer, cache.token_rows(slots), keys, values)


def test_what_is_written_is_gathered_by_head(cache: KvCache) -> None:
    tables = [[7, 2, 9], [0, 5, 1]]
    written = [(_tokens(cache, 12, seed), _tokens(cache, 12, seed + 10)) for seed in range(2)]
    for blocks, (keys, values) in zip(tables, written, strict=True):
        _write(cache, blocks, keys, values)
    plan = cache.plan_gather(tables)
    all_keys, all_values = cache.gather_keys(1, plan), cache.gather_values(1, plan)
    for row, (keys, values) in enumerate(written):
        assert torch.equal(all_keys[row], keys.transpose(0, 1))
        assert torch.equal(all_values[row], values.transpose(0, 1))
    assert not cache.gather_keys(0, plan).any()


def test_a_payload_carries_a_block_into_another_cache(cache: KvCache) -> None:
    keys, values = _tokens(cache, 8, 3), _tokens(cache, 8, 4)
    for layer in range(3):
        _write(cache, [4, 6], keys + layer, values - layer, layer)
    payloads = cache.read_blocks([4, 6])
    assert {len(payload) for payload in payloads} == {cache.block_bytes}
    other = KvCache(load_config(tiny_model("llama3")), 10, _BLOCK, cache.dtype, _CPU)
    assert all(map(other.is_sound, payloads))
    other.write_blocks([BlockLoad(9, memoryview(payloads[0])), BlockLoad(0, payloads[1])])
    for layer in range(3):
        found, wanted = other.plan_gather([[9, 0]]), cache.plan_gather([[4, 6]])
        assert torch.equal(other.gather_keys(layer, found), cache.gather_keys(layer, wanted))
        assert torch.equal(other.gather_values(layer, found), cache.gather_values(layer, wanted))


def test_what_is_not_sound_is_told(cache: KvCache) -> None:
    assert cache.is_sound(bytes(cache.block_bytes))
    assert not cache.is_sound(bytes(cache.block_bytes - 1))
    assert not cache.is_sound(b"")
    assert not cache.is_sound(b"\xff" * cache.block_bytes)  # all bits set is not a number


def test_cleared_blocks_are_zero(cache: KvCache) -> None:
    _write(cache, [3, 4], _tokens(cache, 8), _tokens(cache, 8))
    cache.clear_blocks([3])
    assert cache.read_blocks([3]) == [bytes(cache.block_bytes)]
    assert cache.read_blocks([4]) != [bytes(cache.block_bytes)]
