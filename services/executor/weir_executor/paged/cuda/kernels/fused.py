"""What a layer does between its matrix products, each in one pass over the data. Sums are in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_rms_norm(
    delta,
    residual,
    weight,
    new_residual,
    out,
    hidden_size,
    eps,
    ADD: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One token: residual + delta, rounded to its dtype and kept, and its RMS norm (arXiv 1910.07467)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    is_column = column < hidden_size
    at = token * hidden_size + column
    x = tl.load(residual + at, mask=is_column, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(delta + at, mask=is_column, other=0.0).to(tl.float32)
        rounded = x.to(new_residual.dtype.element_ty)
        tl.store(new_residual + at, rounded, mask=is_column)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / hidden_size + eps)
    w = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + at, (x * scale * w).to(out.dtype.element_ty), mask=is_column)


@triton.jit
def silu_mul(gate_up, out, inner_size, TILE: tl.constexpr):
    """silu(gate) · up; a token's gate stands before its up."""
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tile * TILE + tl.arange(0, TILE)
    is_column = column < inner_size
    at = gate_up + token * 2 * inner_size + column
    gate = tl.load(at, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(at + inner_size, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + token * inner_size + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=is_column)


@triton.jit
def rotate_and_write(
    qkv,
    positions,
    slots,
    rope,
    query_norm,
    key_norm,
    keys,
    values,
    eps,
    block_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NORM: tl.constexpr,
):
    """One head of one token of `qkv` [tokens, HEADS + 2 * KV_HEADS, HEAD_DIM]: queries turn in place, keys turn on
    their way to the cache, values go there as they are. `rope` [positions, 2 (cos, sin), HEAD_DIM / 2] in float32.

    A slot is block_id * BLOCK_SIZE + offset; a token with a slot below 0 is padding and is written nowhere.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = HEAD_DIM // 2
    dim = tl.arange(0, PADDED_HALF)
    is_dim = dim < half
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * HEAD_DIM + dim
    first = tl.load(source, mask=is_dim, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=is_dim, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        if NORM:
            weight = (query_norm if head < HEADS else key_norm) + dim
            scale = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / HEAD_DIM + eps)
            first *= scale * tl.load(weight, mask=is_dim, other=0.0).to(tl.float32)
            second *= scale * tl.load(weight + half, mask=is_dim, other=0.0).to(tl.float32)
        angles = rope + tl.load(positions + token).to(tl.int64) * HEAD_DIM + dim
        cos = tl.load(angles, mask=is_dim, other=0.0)
        sin = tl.load(angles + half, mask=is_dim, other=0.0)
        first, second = first * cos - second * sin, second * cos + first * sin
    slot = tl.load(slots + token).to(tl.int64)
    inside = slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * HEAD_DIM + dim
    if head < HEADS:
        tl.store(source, first.to(qkv.dtype.element_ty), mask=is_dim)
        tl.store(source + half, second.to(qkv.dtype.element_ty), mask=is_dim)
    else:
        is_key = head < HEADS + KV_HEADS
        kv_head = tl.where(is_key, head - HEADS, head - HEADS - KV_HEADS)
        target = (keys if is_key else values) + kv_head * BLOCK_SIZE * HEAD_DIM + inside
        is_kept = is_dim & (slot >= 0)
        tl.store(target, first.to(keys.dtype.element_ty), mask=is_kept)
        tl.store(target + half, second.to(keys.dtype.element_ty), mask=is_kept)


@triton.jit
def write_kv(
    new_keys,
    new_values,
    slots,
    keys,
    values,
    key_stride,
    value_stride,
    block_stride,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One KV head of one token into its slot; see `rotate_and_write`. Strides are from token to token."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dim = tl.arange(0, PADDED_DIM)
    slot = tl.load(slots + token).to(tl.int64)
    is_kept = (dim < HEAD_DIM) & (slot >= 0)
    inside = slot // BLOCK_SIZE * block_stride + (head * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM + dim
    key = tl.load(new_keys + token * key_stride + head * HEAD_DIM + dim, mask=is_kept, other=0.0)
    value = tl.load(new_values + token * value_stride + head * HEAD_DIM + dim, mask=is_kept, other=0.0)
    tl.store(keys + inside, key.to(keys.dtype.element_ty), mask=is_kept)
    tl.store(values + inside, value.to(values.dtype.element_ty), mask=is_kept)
