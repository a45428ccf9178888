"""Attention over the block table by our Triton kernels, behind the seam that `TorchAttention` stands behind too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from weir_executor.paged.attention import AttentionBackend
from weir_executor.paged.cuda.kernels import attend as kernels
from weir_executor.paged.cuda.kernels import fused
from weir_executor.paged.cuda.staging import Staging
from weir_executor.paged.cuda.tables import tables
from weir_executor.paged.flat_batch import Row
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.config import LayerAttention

_EVERYTHING = 1 << 30  # tokens: a window that hides nothing
_LOG2_E = 1.4426950408889634
# Two programs for each multiprocessor of the device keep its memory busy; more splits only make more to combine.
_PROGRAMS_PER_PROCESSOR = 2
_MOST_SPLITS = 32
_INTERPRETED_PROGRAMS = 4  # the interpreter runs programs one after the other: few, but more than one split


@dataclass(frozen=True, slots=True)
class DeviceTables:
    """`Tables` where the kernels read them, int32."""

    slots: torch.Tensor
    rows: torch.Tensor
    few: torch.Tensor
    many: torch.Tensor
    block_ids: torch.Tensor
    few_tokens: int


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Of one launch. `tile_m` lanes are queries times the heads of a group."""

    tile_m: int
    tile_n: int
    warps: int
    stages: int


class TritonAttention(AttentionBackend):
    """`max_numbers`: the longest step's tables, see `max_numbers`. Sums in float32; products in the cache's dtype."""

    def __init__(self, cache: KvCache, num_heads: int, layers: Sequence[LayerAttention], max_numbers: int) -> None:
        self.cache, self._num_heads, self._layers = cache, num_heads, layers
        self._group = num_heads // cache.num_kv_heads
        self._few = _few_tiling(cache, self._group)
        self._many = _many_tiling(cache, self._group)
        self._product = _product_dtype(cache)
        self._programs = _programs(cache.device)
        self._staging = Staging(max_numbers, cache.device)
        self._tables: DeviceTables | None = None

    @property
    def slots(self) -> torch.Tensor:
        """Where the step's tokens are written, [tokens] int32."""
        assert self._tables is not None, "plan first"
        return self._tables.slots

    @property
    def few_queries(self) -> int:
        return self._few.tile_m // self._group

    @property
    def many_queries(self) -> int:
        return self._many.tile_m // self._group

    def plan(self, rows: Sequence[Row]) -> None:
        told = tables(rows, self.cache.block_size, self.few_queries, self.many_queries)
        parts = [told.slots, told.rows, told.few, told.many, told.block_ids]
        slots, starts, few, many, block_ids = self._staging.upload(parts)
        self.use(DeviceTables(slots, starts, few, many, block_ids, told.few_tokens))

    def use(self, tables: DeviceTables) -> None:
        """Attend by these tables until others come."""
        self._tables = tables

    def attend(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        assert self._tables is not None, "plan first"
        assert all(t.stride()[1:] == (self.cache.head_dim, 1) for t in (queries, keys, values)), "heads lie in a row"
        cached_keys, cached_values = self.cache.layer_blocks(layer)
        fused.write_kv[(keys.shape[0], self.cache.num_kv_heads)](
            keys, values, self._tables.slots, cached_keys, cached_values,
            keys.stride(0), values.stride(0), cached_keys.stride(0),
            HEAD_DIM=self.cache.head_dim, PADDED_DIM=triton.next_power_of_2(self.cache.head_dim),
            BLOCK_SIZE=self.cache.block_size, num_warps=1,
        )  # fmt: skip
        return self.attend_written(layer, queries)

    def attend_written(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """Attend to what the cache holds, this step's keys and values included. [tokens, heads, head_dim]."""
        assert self._tables is not None, "plan first"
        out = queries.new_empty((queries.shape[0], self._num_heads, self.cache.head_dim))
        if len(self._tables.few):
            self._attend_few(layer, queries, out, self._tables)
        if len(self._tables.many):
            self._launch(layer, queries, out, self._tables, tiles=self._tables.many, tiling=self._many)
        return out

    def _attend_few(self, layer: int, queries: torch.Tensor, out: torch.Tensor, tables: DeviceTables) -> None:
        splits = num_splits(len(tables.few) // 2 * self.cache.num_kv_heads, self._programs)
        if splits == 1:
            self._launch(layer, queries, out, tables, tiles=tables.few, tiling=self._few)
            return
        size = (splits, tables.few_tokens, self._num_heads)
        found = torch.empty((*size, self.cache.head_dim), dtype=torch.float32, device=out.device)
        lse = torch.empty(size, dtype=torch.float32, device=out.device)
        self._launch(layer, queries, out, tables, tiles=tables.few, tiling=self._few, partial=(found, lse))
        kernels.combine[(tables.few_tokens, self._num_heads)](
            found, lse, out, tables.few_tokens, out.stride(0),
            HEADS=self._num_heads, HEAD_DIM=self.cache.head_dim,
            PADDED_DIM=triton.next_power_of_2(self.cache.head_dim), SPLITS=splits, num_warps=4,
        )  # fmt: skip

    def _launch(
        self,
        layer: int,
        queries: torch.Tensor,
        out: torch.Tensor,
        tables: DeviceTables,
        *,
        tiles: torch.Tensor,
        tiling: _Tiling,
        partial: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """`partial`: where the splits' results go, [splits, tokens, heads, head_dim] and [splits, tokens, heads]."""
        cache, scoring = self.cache, self._layers[layer]
        keys, values = cache.layer_blocks(layer)
        found, lse = partial or (out, out)
        splits = len(found) if partial else 1
        kernels.attend[(len(tiles) // 2, cache.num_kv_heads, splits)](
            queries, keys, values, out, found, lse, tiles, tables.rows, tables.block_ids,
            tables.few_tokens, queries.stride(0), out.stride(0), keys.stride(0),
            scoring.scale * _LOG2_E, scoring.softcap or 0.0, scoring.window or _EVERYTHING,
            GROUP=self._group, HEADS=self._num_heads, HEAD_DIM=cache.head_dim,
            PADDED_DIM=triton.next_power_of_2(cache.head_dim), BLOCK_SIZE=cache.block_size,
            TILE_M=tiling.tile_m, TILE_N=tiling.tile_n, SPLITS=splits, SOFTCAP=scoring.softcap is not None,
            PRODUCT=self._product, num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip


def num_splits(num_programs: int, wanted: int) -> int:
    """Into how many parts keys are cut, so that about as many programs run as are wanted. A power of two."""
    splits = 1
    while splits < _MOST_SPLITS and 2 * splits * num_programs <= wanted:
        splits *= 2
    return splits


def max_numbers(max_tokens: int, max_rows: int, max_blocks: int) -> int:
    """How long the tables of a step can be: of so many tokens and rows, and of so many blocks per row."""
    # slots; rows; tiles: one per row and, of chunks, at most one per token; block ids; four numbers of alignment each.
    return max_tokens + 4 * max_rows + 2 * (max_rows + max_tokens) + max_rows * max_blocks + 5 * 4


def _few_tiling(cache: KvCache, group: int) -> _Tiling:
    """For decodes: as few lanes as a product takes, memory is what limits."""
    row_bytes = triton.next_power_of_2(cache.head_dim) * cache.dtype.itemsize
    wide = row_bytes > 256 or cache.dtype is torch.float32
    return _Tiling(max(16, triton.next_power_of_2(group)), 32 if wide else 64, warps=4, stages=2 if wide else 3)


def _many_tiling(cache: KvCache, group: int) -> _Tiling:
    """For chunks: tiles as large as shared memory holds beside what is on its way."""
    row_bytes = triton.next_power_of_2(cache.head_dim) * cache.dtype.itemsize
    if _is_interpreted(cache.device):
        return _Tiling(max(16, triton.next_power_of_2(group)), 16, warps=4, stages=1)
    if row_bytes <= 256 and cache.dtype is not torch.float32:
        return _Tiling(max(128, triton.next_power_of_2(group)), 64, warps=8, stages=3)
    if cache.dtype is torch.float32:  # multiplied without tensor cores, from registers: a small tile has enough of them
        return _Tiling(max(32, triton.next_power_of_2(group)), 32, warps=8, stages=2)
    return _Tiling(max(64, triton.next_power_of_2(group)), 32, warps=8, stages=2)


def _product_dtype(cache: KvCache) -> tl.dtype:
    # The interpreter multiplies with NumPy, which has no bfloat16.
    if _is_interpreted(cache.device) or cache.dtype is torch.float32:
        return tl.float32
    return tl.bfloat16 if cache.dtype is torch.bfloat16 else tl.float16


def _programs(device: torch.device) -> int:
    if _is_interpreted(device):
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _is_interpreted(device: torch.device) -> bool:
    """Whether the kernels run in Triton's interpreter: only there can they run on a CPU."""
    return device.type == "cpu"
