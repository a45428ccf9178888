"""Launching the fused kernels: what stands between a Llama-family layer's matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from weir_executor.paged.cuda.kernels import fused
from weir_executor.paged.kv_cache import KvCache

_SILU_TILE = 1024  # columns of one program: few enough that one token's fill several multiprocessors


def add_rms_norm(
    residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(residual + delta, its RMS norm), both [tokens, hidden]. The sum is rounded to its dtype before the norm."""
    tokens, hidden_size = residual.shape
    normed = torch.empty_like(residual)
    total = residual if delta is None else torch.empty_like(residual)
    fused.add_rms_norm[(tokens,)](
        residual if delta is None else delta, residual, weight, total, normed, hidden_size, eps,
        ADD=delta is not None, PADDED=triton.next_power_of_2(hidden_size), num_warps=8,
    )  # fmt: skip
    return total, normed


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up of [tokens, 2 * inner], in one pass."""
    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((tokens, inner))
    fused.silu_mul[(tokens, triton.cdiv(inner, _SILU_TILE))](gate_up, out, inner, TILE=_SILU_TILE, num_warps=4)
    return out


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms of every query and key head, where a family has them: weights [head_dim]."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


def rotate_and_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    *,
    rope: torch.Tensor,
    cache: KvCache,
    layer: int,
    norms: HeadNorms | None,
) -> torch.Tensor:
    """Norm and turn queries in place, keys on their way to the cache. Returns the queries, a view of `qkv`.

    `qkv` [tokens, heads + 2 * kv_heads, head_dim]; `positions`, `slots` [tokens] int32; `rope` [positions, 2 (cos,
    sin), head_dim / 2] float32, so that angles are not rounded to the model's dtype.
    """
    tokens, all_heads, head_dim = qkv.shape
    heads = all_heads - 2 * cache.num_kv_heads
    keys, values = cache.layer_blocks(layer)
    fused.rotate_and_write[(tokens, all_heads)](
        qkv, positions, slots, rope, norms.query if norms else rope, norms.key if norms else rope, keys, values,
        norms.eps if norms else 0.0, keys.stride(0),
        HEADS=heads, KV_HEADS=cache.num_kv_heads, HEAD_DIM=head_dim, PADDED_HALF=triton.next_power_of_2(head_dim // 2),
        BLOCK_SIZE=cache.block_size, NORM=norms is not None, num_warps=1,
    )  # fmt: skip
    return qkv[:, :heads]
