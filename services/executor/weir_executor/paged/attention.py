"""Attention over the block table, behind one small base.

A backend looks at a step once (`plan`), and then attends layer by layer. The rows of a step are ordered by the runner:
single tokens first, those with few blocks before those with many and those that begin alike side by side, then the
prefill chunks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch

from weir_executor.paged.flat_batch import Row, num_blocks, slots
from weir_executor.paged.kv_cache import Gather, KvCache
from weir_executor.paged.model.config import LayerAttention
from weir_executor.paged.model.layers import soft_cap

# Decodes share one padded gather until padding would read this many blocks for nothing; then another gather is cheaper.
_MAX_WASTED_BLOCKS = 64


class AttentionBackend(ABC):
    """Writes a step's keys and values to the cache and attends its queries to all that came before."""

    @abstractmethod
    def plan(self, rows: Sequence[Row]) -> None:
        """Look at the step: `rows` in the order of the tensors that `attend` will see."""

    @abstractmethod
    def attend(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """[tokens, heads, head_dim] each; returns the queries' shape. Valid between one `plan` and the next."""


@dataclass(frozen=True, slots=True)
class _Grain:
    """How much is worked on at once."""

    gathered_bytes: int  # keys of one group of decodes
    tile_queries: int  # of a prefill chunk


# A core's second-level cache holds what is gathered, or scored, until it is multiplied. A GPU wants few large products.
_CPU_GRAIN, _GPU_GRAIN = _Grain(2 << 20, 128), _Grain(1 << 28, 512)


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Rows that each bring one token, padded to the same number of blocks."""

    first: int
    end: int
    shared: Gather | None  # the blocks with which all of them begin, read once for all
    own: Gather
    mask: torch.Tensor | None  # [rows, 1, 1, tokens], added; none when nothing is hidden


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some consecutive queries of a chunk, and the places between which they see."""

    first: int
    end: int
    oldest: int
    newest: int  # exclusive
    mask: torch.Tensor  # [queries, 1, places], added to the scores of the last so many places


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One sequence's prefill chunk."""

    gather: Gather
    first_place: int  # of what is gathered
    tiles: list[_Tile]


@dataclass(frozen=True, slots=True)
class _Plan:
    decodes: list[_DecodeGroup]
    chunks: list[_Chunk]


class TorchAttention(AttentionBackend):
    """Gathers blocks into rows by head, multiplies, and so on: plain products and a softmax.

    PyTorch's fused attention for CPU reaches half the speed of its products. Softmax computes in float32 whatever the
    dtype; scores and weights are rounded to it, as in the models' own reference.
    """

    def __init__(self, cache: KvCache, layers: Sequence[LayerAttention]) -> None:
        """`layers`: how each scores, by its index."""
        self._cache, self._layers = cache, layers
        self._grain = _CPU_GRAIN if cache.device.type == "cpu" else _GPU_GRAIN
        self._token_rows = torch.empty(0, dtype=torch.int64)
        self._plans: dict[int | None, _Plan] = {}  # by window: layers that see alike read alike
        self._causal = self._mask(torch.ones((self._grain.tile_queries,) * 2, dtype=torch.bool).tril())
        self._scores = torch.empty(0, dtype=cache.dtype, device=cache.device)  # room for one tile's

    def plan(self, rows: Sequence[Row]) -> None:
        self._token_rows = self._cache.token_rows(list(slots(rows, self._cache.block_size)))
        longest = max(row.first + row.count for row in rows)
        self._plans = {}
        for window in {layer.window for layer in self._layers}:
            # A window that hides nothing of this step is none.
            effective = None if window is None or longest <= window else window
            if effective not in self._plans:
                self._plans[effective] = self._plan(rows, effective)
            self._plans[window] = self._plans[effective]

    def attend(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        self._cache.write(layer, self._token_rows, keys, values)
        num_tokens, num_heads, head_dim = queries.shape
        scoring = self._layers[layer]
        # Query heads that share a KV head stand where several query tokens would: KV is read once, never repeated.
        grouped = (queries * scoring.scale).view(num_tokens, self._cache.num_kv_heads, -1, head_dim)
        out = torch.empty_like(grouped)
        plan = self._plans[scoring.window]
        for group in plan.decodes:
            self._attend_decodes(layer, group, grouped, out)
        for chunk in plan.chunks:
            self._attend_chunk(layer, chunk, grouped, out)
        return out.view(num_tokens, num_heads, head_dim)

    def _attend_decodes(self, layer: int, group: _DecodeGroup, queries: torch.Tensor, out: torch.Tensor) -> None:
        rows = queries[group.first : group.end]
        scores = rows @ self._cache.gather_keys(layer, group.own).transpose(2, 3)
        if group.shared is not None:
            common = self._cache.gather_keys(layer, group.shared)[0]
            scores = torch.cat((_multiply(rows, common.transpose(1, 2)), scores), dim=-1)
        soft_cap(scores, self._layers[layer].softcap)
        if group.mask is not None:
            scores += group.mask
        weights = torch.softmax(scores, dim=-1)
        own_values = self._cache.gather_values(layer, group.own)
        found = weights[..., -own_values.shape[2] :] @ own_values
        if group.shared is not None:
            common = self._cache.gather_values(layer, group.shared)[0]
            found += _multiply(weights[..., : common.shape[1]], common)
        out[group.first : group.end] = found

    def _attend_chunk(self, layer: int, chunk: _Chunk, queries: torch.Tensor, out: torch.Tensor) -> None:
        keys = self._cache.gather_keys(layer, chunk.gather)[0].transpose(1, 2)
        values = self._cache.gather_values(layer, chunk.gather)[0]
        for tile in chunk.tiles:
            rows, num_places = queries[tile.first : tile.end], tile.newest - tile.oldest
            scores = self._room_for(rows.shape[1], rows.shape[0] * rows.shape[2], num_places)
            seen = slice(tile.oldest - chunk.first_place, tile.newest - chunk.first_place)
            torch.bmm(_by_head(rows), keys[:, :, seen], out=scores)
            soft_cap(scores, self._layers[layer].softcap)
            by_query = scores.view(rows.shape[1], rows.shape[0], -1, num_places)
            by_query[..., -tile.mask.shape[2] :] += tile.mask
            torch.softmax(scores, dim=-1, out=scores)
            found = torch.bmm(scores, values[:, seen])
            out[tile.first : tile.end] = _by_token(found, rows.shape[0])

    def _room_for(self, *shape: int) -> torch.Tensor:
        size = prod(shape)
        if len(self._scores) < size:
            self._scores = torch.empty(size, dtype=self._cache.dtype, device=self._cache.device)
        return self._scores[:size].view(shape)

    def _plan(self, rows: Sequence[Row], window: int | None) -> _Plan:
        decodes = [row for row in rows if row.count == 1]
        assert all(row.count == 1 for row in rows[: len(decodes)]), "single tokens come first"
        most_blocks = self._grain.gathered_bytes // self._cache.layer_block_bytes
        ranges = _groups([self._blocks(row, window) for row in decodes], most_blocks)
        groups = [self._plan_decodes(decodes[first:end], first, window) for first, end in ranges]
        chunks, first = [], len(decodes)
        for row in rows[len(decodes) :]:
            chunks.append(self._plan_chunk(row, first, window))
            first += row.count
        return _Plan(groups, chunks)

    def _plan_decodes(self, rows: Sequence[Row], first: int, window: int | None) -> _DecodeGroup:
        size = self._cache.block_size
        blocks = [self._blocks(row, window) for row in rows]
        num_shared = _num_shared(blocks)
        width = max(map(len, blocks))
        # Padding reads a row's own last block again: any finite numbers do.
        table = [[*own[num_shared:], *([own[-1]] * (width - len(own)))] for own in blocks]
        oldest = torch.tensor([_oldest_block(row, window, size) * size for row in rows]).view(-1, 1, 1, 1)
        lengths = torch.tensor([row.first + 1 for row in rows]).view(-1, 1, 1, 1) - oldest
        places = torch.arange(width * size)
        visible = places < lengths
        if window is not None:
            visible &= places >= lengths - window
        mask = None if bool(visible.all()) else self._mask(visible)
        shared = self._cache.plan_gather([blocks[0][:num_shared]]) if num_shared else None
        return _DecodeGroup(first, first + len(rows), shared, self._cache.plan_gather(table), mask)

    def _plan_chunk(self, row: Row, first: int, window: int | None) -> _Chunk:
        step = self._grain.tile_queries
        tiles = [
            self._plan_tile(row.first + done, min(step, row.count - done), first + done, window)
            for done in range(0, row.count, step)
        ]
        gathered = _oldest_block(row, window, self._cache.block_size) * self._cache.block_size
        return _Chunk(self._cache.plan_gather([self._blocks(row, window)]), gathered, tiles)

    def _plan_tile(self, place: int, count: int, first: int, window: int | None) -> _Tile:
        """For `count` queries from `place` in their sequence and from row `first` of the step."""
        end = place + count
        if window is None or end <= window:
            return _Tile(first, first + count, 0, end, self._causal[:count, :count].unsqueeze(1))
        oldest = max(0, place - window + 1)
        queries, places = torch.arange(place, end).view(-1, 1, 1), torch.arange(oldest, end)
        visible = (places <= queries) & (places > queries - window)
        return _Tile(first, first + count, oldest, end, self._mask(visible))

    def _blocks(self, row: Row, window: int | None) -> list[int]:
        """The blocks that hold what this row attends to; the sequence may own more, for tokens of later chunks."""
        size = self._cache.block_size
        return list(row.blocks[_oldest_block(row, window, size) : num_blocks(row, size)])

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        """What is added to scores: nothing where a place is visible, minus infinity where it is not."""
        hidden = torch.zeros(visible.shape, dtype=self._cache.dtype).masked_fill_(~visible, -torch.inf)
        return hidden.to(self._cache.device)


def _multiply(rows: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
    """[rows, kv_heads, group, a] by the same [kv_heads, a, b] for all rows: [rows, kv_heads, group, b]."""
    return _by_token(torch.bmm(_by_head(rows), common), rows.shape[0])


def _by_head(rows: torch.Tensor) -> torch.Tensor:
    """[rows, kv_heads, group, a] → [kv_heads, rows * group, a]."""
    return rows.transpose(0, 1).flatten(1, 2)


def _by_token(heads: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Undo `_by_head`."""
    return heads.view(heads.shape[0], num_rows, -1, heads.shape[2]).transpose(0, 1)


def _oldest_block(row: Row, window: int | None, block_size: int) -> int:
    """The index of the block that holds the oldest token which the row's first sees."""
    return 0 if window is None else max(0, row.first + 1 - window) // block_size


def _num_shared(blocks: Sequence[list[int]]) -> int:
    """With how many blocks all of several rows begin. The least and the greatest differ no later than any others."""
    if len(blocks) == 1:
        return 0
    least, greatest = min(blocks), max(blocks)
    count = next((i for i, (one, other) in enumerate(zip(least, greatest, strict=False)) if one != other), len(least))
    assert all(len(own) > count for own in blocks), "the block that a token is written to is its sequence's own"
    return count


def _groups(blocks: Sequence[list[int]], most_blocks: int) -> Iterator[tuple[int, int]]:
    """Cut decodes into ranges that begin alike, or have nothing in common, and pad little."""
    beginnings, first = Counter(own[0] for own in blocks), 0
    for _, members in groupby(blocks, lambda own: own[0] if beginnings[own[0]] > 1 else None):
        family = list(members)
        num_shared = _num_shared(family)
        for start, end in _cut([len(own) - num_shared for own in family], most_blocks):
            yield first + start, first + end
        first += len(family)


def _cut(counts: Sequence[int], most_blocks: int) -> Iterator[tuple[int, int]]:
    """Cut rows of so many blocks, in rising order, into ranges of one gather each."""
    ranges, end = [], len(counts)
    while end:
        first, wasted, width = end - 1, 0, counts[end - 1]
        while first and (end - first + 1) * width <= most_blocks:
            wasted += width - counts[first - 1]
            if wasted > _MAX_WASTED_BLOCKS:
                break
            first -= 1
        ranges.append((first, end))
        end = first
    return reversed(ranges)
