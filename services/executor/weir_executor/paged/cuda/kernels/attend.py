"""Attention over the block table, without gathering: one Triton kernel for decodes, drafts and prefill chunks.

A tile is some consecutive queries of one row. One program attends one tile's queries, those of all query heads that
share a KV head, to one split of the keys that they see:

    queries  tile [block_m] = (query, head of the group)      keys  0 ········· length
                                                                   split 0 │ split 1 │ split 2
    blocks   block_starts[row] ─▶ | id | id | id | …          position p is in block p // block_size, at p % block_size

Online softmax as in Dao et al., "FlashAttention" (arXiv 2205.14135); keys in splits for rows with few queries as in
"Flash-Decoding" (Dao, Haziza, Massa, Sizov, 2023); the heads of a group side by side, so that keys and values are read
once per group (Ainslie et al., "GQA", arXiv 2305.13245). Sums are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    queries,
    keys,
    values,
    out,
    partial_out,
    partial_lse,
    tiles,
    rows,
    block_ids,
    num_tokens,
    query_stride,
    out_stride,
    block_stride,
    scale_log2,
    softcap,
    window,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    SPLITS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """`tiles` [tiles, 2]: row, first query of the row. `rows` [rows, 4]: first token, queries, length, first block id.

    A row's queries are its last so many positions, of `length`; a row of length 0 comes to zeros.
    """
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(tiles + tile * 2)
    first_query = tl.load(tiles + tile * 2 + 1)
    first_token = tl.load(rows + row * 4)
    count = tl.load(rows + row * 4 + 1)
    length = tl.load(rows + row * 4 + 2)
    row_blocks = block_ids + tl.load(rows + row * 4 + 3)

    # Which queries, at which positions of their sequence.
    lane = tl.arange(0, TILE_M)
    query = first_query + lane // GROUP
    head = kv_head * GROUP + lane % GROUP
    is_query = (lane < TILE_M // GROUP * GROUP) & (query < count)
    position = length - count + query
    first_position = length - count + first_query
    last_position = tl.minimum(first_position + TILE_M // GROUP, length) - 1

    dim = tl.arange(0, PADDED_DIM)
    is_dim = dim < HEAD_DIM
    token = (first_token + query).to(tl.int64)
    at = token[:, None] * query_stride + head[:, None] * HEAD_DIM + dim[None, :]
    q = tl.load(queries + at, mask=is_query[:, None] & is_dim[None, :], other=0.0).to(PRODUCT)

    # This split's share of the keys that any of these queries sees, in whole tiles.
    oldest = tl.maximum(first_position - window + 1, 0) // TILE_N * TILE_N
    newest = last_position + 1
    per_split = tl.cdiv(tl.cdiv(newest - oldest, TILE_N), SPLITS) * TILE_N
    begin = oldest + split * per_split
    end = tl.minimum(begin + per_split, newest)
    # Keys that every query of the tile sees need no mask: from the last query's window to the first query.
    clear_begin = tl.minimum(
        tl.maximum(begin, tl.cdiv(tl.maximum(last_position - window + 1, 0), TILE_N) * TILE_N), end
    )
    clear_end = tl.maximum(clear_begin, tl.minimum(end, (first_position + 1) // TILE_N * TILE_N))

    highest = tl.full((TILE_M,), float("-inf"), tl.float32)
    total = tl.zeros((TILE_M,), tl.float32)
    found = tl.zeros((TILE_M, PADDED_DIM), tl.float32)
    head_keys = keys + kv_head * BLOCK_SIZE * HEAD_DIM
    head_values = values + kv_head * BLOCK_SIZE * HEAD_DIM
    for start in range(begin, clear_begin, TILE_N):
        highest, total, found = _step(
            q, highest, total, found, head_keys, head_values, row_blocks, start, newest, position, window, block_stride,
            scale_log2, softcap, HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE_N, SOFTCAP, PRODUCT, True,
        )  # fmt: skip
    for start in range(clear_begin, clear_end, TILE_N):
        highest, total, found = _step(
            q, highest, total, found, head_keys, head_values, row_blocks, start, newest, position, window, block_stride,
            scale_log2, softcap, HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE_N, SOFTCAP, PRODUCT, False,
        )  # fmt: skip
    for start in range(clear_end, end, TILE_N):
        highest, total, found = _step(
            q, highest, total, found, head_keys, head_values, row_blocks, start, newest, position, window, block_stride,
            scale_log2, softcap, HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE_N, SOFTCAP, PRODUCT, True,
        )  # fmt: skip

    is_some = total > 0.0
    found = found / tl.where(is_some, total, 1.0)[:, None]
    is_out = is_query[:, None] & is_dim[None, :]
    if SPLITS == 1:
        at = token[:, None] * out_stride + head[:, None] * HEAD_DIM + dim[None, :]
        tl.store(out + at, found.to(out.dtype.element_ty), mask=is_out)
    else:
        place = (split * num_tokens + token) * HEADS + head
        tl.store(partial_out + place[:, None] * HEAD_DIM + dim[None, :], found, mask=is_out)
        lse = tl.where(is_some, highest + tl.log2(tl.where(is_some, total, 1.0)), float("-inf"))
        tl.store(partial_lse + place, lse, mask=is_query)


@triton.jit
def _step(
    q, highest, total, found, keys, values, row_blocks, start, newest, position, window, block_stride,
    scale_log2, softcap,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE_N: tl.constexpr,
    SOFTCAP: tl.constexpr, PRODUCT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take the keys and values of one tile in: the online softmax's three numbers go on."""
    place = start + tl.arange(0, TILE_N)
    dim = tl.arange(0, PADDED_DIM)
    is_place = place < newest
    block = tl.load(row_blocks + place // BLOCK_SIZE, mask=is_place, other=0).to(tl.int64)
    at = (block * block_stride + place % BLOCK_SIZE * HEAD_DIM)[:, None] + dim[None, :]
    is_there = is_place[:, None] & (dim < HEAD_DIM)[None, :]
    k = tl.load(keys + at, mask=is_there, other=0.0).to(PRODUCT)
    v = tl.load(values + at, mask=is_there, other=0.0).to(PRODUCT)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if SOFTCAP:
        # cap * tanh(score / cap), by the sigmoid; scores come and go in units of log2(e).
        scores = softcap * (2.0 * tl.sigmoid(2.0 * 0.6931471805599453 / softcap * scores) - 1.0) * 1.4426950408889634
    if MASKED:
        visible = (place[None, :] <= position[:, None]) & (place[None, :] > position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    # A lane that has seen nothing yet subtracts nothing: minus infinity less itself is no number.
    base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    weights = tl.exp2(scores - base[:, None])
    kept = tl.exp2(highest - base)
    total = total * kept + tl.sum(weights, 1)
    found = found * kept[:, None] + tl.dot(weights.to(PRODUCT), v, input_precision="ieee")
    return new_highest, total, found


@triton.jit
def combine(
    partial_out,
    partial_lse,
    out,
    num_tokens,
    out_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One token's head: the splits' results, weighed by how much of the softmax's mass each of them saw."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, PADDED_DIM)
    is_dim = dim < HEAD_DIM
    place = (split * num_tokens + token) * HEADS + head
    lse = tl.load(partial_lse + place)
    highest = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(weights, 0)
    parts = tl.load(partial_out + place[:, None] * HEAD_DIM + dim[None, :], mask=is_dim[None, :], other=0.0)
    found = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(out + token * out_stride + head * HEAD_DIM + dim, found.to(out.dtype.element_ty), mask=is_dim)
