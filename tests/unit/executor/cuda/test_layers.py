"""The fused kernels against the layers of the plain PyTorch model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from models_fixture import tiny_model
from weir_executor.paged.cuda.layers import HeadNorms, add_rms_norm, rotate_and_write, silu_mul
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.layers import RmsNorm, Rotation
from weir_executor.paged.model.registry import load_config

_TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0.0, atol=_TOLERANCE[found.dtype])


@pytest.mark.parametrize("hidden_size", [48, 64])
def test_residual_and_norm(device: torch.device, dtype: torch.dtype, hidden_size: int) -> None:
    residual, delta = (_random((5, hidden_size), dtype, device, seed) for seed in (1, 2))
    weight = _random((hidden_size,), dtype, device, 3)
    total, normed = add_rms_norm(residual, delta, weight, 1e-5)
    # The interpreter cuts a bfloat16 off where a device rounds it.
    if (device.type, dtype) == ("cpu", torch.bfloat16):
        _close(total, residual + delta)
    else:
        assert torch.equal(total, residual + delta)
    _close(normed, functional.rms_norm(total.float(), (hidden_size,), weight.float(), 1e-5))


def test_the_first_norm_has_nothing_to_add(device: torch.device) -> None:
    residual, weight = _random((3, 40), torch.float32, device), _random((40,), torch.float32, device, 1)
    total, normed = add_rms_norm(residual, None, weight, 1e-6)
    assert total is residual
    _close(normed, functional.rms_norm(residual, (40,), weight, 1e-6))


@pytest.mark.parametrize("inner", [96, 1500])
def test_silu_times_up(device: torch.device, dtype: torch.dtype, inner: int) -> None:
    gate_up = _random((3, 2 * inner), dtype, device)
    gate, up = gate_up.float().chunk(2, dim=-1)
    _close(silu_mul(gate_up), functional.silu(gate) * up)


@pytest.mark.parametrize("with_norms", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize("head_dim", [16, 24])
def test_heads_turn_and_keys_and_values_land_in_their_slots(
    device: torch.device, dtype: torch.dtype, with_norms: bool, head_dim: int
) -> None:
    heads, kv_heads, block_size, layer = 6, 2, 4, 1
    config = replace(load_config(tiny_model("llama3")), num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
    cache = KvCache(config, 8, block_size, dtype, device)
    positions, slots = [0, 9, 30, 4], [13, -1, 0, 31]
    angles = torch.rand((40, head_dim // 2), generator=torch.Generator().manual_seed(1)) * 6
    rope = torch.stack((angles.cos(), angles.sin()), dim=1).to(device)
    norms = None
    if with_norms:
        norms = HeadNorms(_random((head_dim,), dtype, device, 5), _random((head_dim,), dtype, device, 6), 1e-6)
    qkv = _random((4, heads + 2 * kv_heads, head_dim), dtype, device)
    queries, keys, values = (part.clone() for part in torch.split(qkv.float(), [heads, kv_heads, kv_heads], dim=1))

    where = (torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (positions, slots))
    found = rotate_and_write(qkv, *where, rope=rope, cache=cache, layer=layer, norms=norms)

    if norms:
        queries, keys = (
            RmsNorm(weight.float(), norms.eps)(part) for part, weight in ((queries, norms.query), (keys, norms.key))
        )
    turn = Rotation.at(torch.tensor(positions, device=device), rope, torch.float32)
    _close(found, turn(queries))
    for blocks, expected in zip(cache.layer_blocks(layer), (turn(keys), values), strict=True):
        by_slot = blocks.transpose(1, 2).flatten(0, 1)
        for token, slot in enumerate(slots):
            if slot >= 0:
                _close(by_slot[slot], expected[token])
        untouched = [slot for slot in range(8 * block_size) if slot not in slots]
        assert not by_slot[untouched].any()
    assert not any(blocks.any() for blocks in cache.layer_blocks(0))
