"""Attention over the block table, behind one small base.

A backend looks at a step once (`plan`), and then attends layer by layer. The rows of a step are ordered by the runner:
single tokens first, those with few blocks before those with many, then the prefill chunks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from weir_executor.paged.kv_cache import Gather, KvCache
from weir_executor.paged.scheduler import Scheduled

# Decodes share one padded gather until padding would read this many blocks for nothing; then another gather is cheaper.
_MAX_WASTED_BLOCKS = 64


class AttentionBackend(ABC):
    """Writes a step's keys and values to the cache and attends its queries to all that came before."""

    @abstractmethod
    def plan(self, rows: Sequence[Scheduled]) -> None:
        """Look at the step: `rows` in the order of the tensors that `attend` will see."""

    @abstractmethod
    def attend(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """[tokens, heads, head_dim] each; returns the queries' shape. Valid between one `plan` and the next."""


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Rows that each bring one token, padded to the same number of blocks."""

    first: int
    end: int
    gather: Gather
    mask: torch.Tensor | None  # [rows, 1, 1, tokens], added; none when nothing is hidden


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One sequence's prefill chunk."""

    first: int
    end: int
    num_known: int  # tokens of the sequence up to the chunk's end
    gather: Gather | None  # none: the chunk starts its sequence and attends to itself alone
    mask: torch.Tensor | None  # [queries, tokens], added; none: plainly causal


class TorchAttention(AttentionBackend):
    """Gathers blocks into rows by head and leaves the rest to PyTorch: two products per group of decodes, scaled
    dot-product attention per chunk."""

    def __init__(self, cache: KvCache, sliding_window: int | None) -> None:
        self._cache, self._window = cache, sliding_window
        self._scale = cache.head_dim**-0.5
        self._token_rows = torch.empty(0, dtype=torch.int64)
        self._decodes: list[_DecodeGroup] = []
        self._chunks: list[_Chunk] = []

    def plan(self, rows: Sequence[Scheduled]) -> None:
        decodes = [row for row in rows if row.count == 1]
        assert all(row.count == 1 for row in rows[: len(decodes)]), "single tokens come first"
        self._token_rows = self._cache.token_rows(list(_slots(rows, self._cache.block_size)))
        ranges = _groups(decodes, self._cache.block_size)
        self._decodes = [self._plan_decodes(decodes, first, end) for first, end in ranges]
        self._chunks, first = [], len(decodes)
        for row in rows[len(decodes) :]:
            self._chunks.append(self._plan_chunk(row, first))
            first += row.count

    def attend(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        self._cache.write(layer, self._token_rows, keys, values)
        parts = [self._attend_decodes(layer, group, queries) for group in self._decodes]
        parts += [self._attend_chunk(layer, chunk, queries, keys, values) for chunk in self._chunks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_decodes(self, layer: int, group: _DecodeGroup, queries: torch.Tensor) -> torch.Tensor:
        """Query heads that share a KV head stand where several query tokens would: KV is read once, never repeated."""
        num_rows = group.end - group.first
        keys, values = self._cache.gather(layer, group.gather)
        shared = (queries[group.first : group.end] * self._scale).view(
            num_rows, self._cache.num_kv_heads, -1, keys.shape[3]
        )
        scores = shared @ keys.transpose(2, 3)
        if group.mask is not None:
            scores += group.mask
        return torch.matmul(scores.softmax(dim=-1), values).view(num_rows, *queries.shape[1:])

    def _attend_chunk(
        self, layer: int, chunk: _Chunk, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        rows = slice(chunk.first, chunk.end)
        if chunk.gather is None:
            all_keys, all_values = _heads_first(keys[rows]), _heads_first(values[rows])
        else:
            gathered = self._cache.gather(layer, chunk.gather)
            all_keys, all_values = (part[:, :, : chunk.num_known] for part in gathered)
        out = functional.scaled_dot_product_attention(
            _heads_first(queries[rows]),
            all_keys,
            all_values,
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)

    def _plan_decodes(self, decodes: Sequence[Scheduled], first: int, end: int) -> _DecodeGroup:
        rows, size = decodes[first:end], self._cache.block_size
        width = _num_blocks(rows[-1], size)
        # Padding reads a row's own first block again: any finite numbers do.
        table = [[*_blocks(row, size), *([row.sequence.blocks[0]] * (width - _num_blocks(row, size)))] for row in rows]
        lengths = torch.tensor([row.first + 1 for row in rows]).view(-1, 1, 1, 1)
        places = torch.arange(width * size)
        visible = places < lengths
        if self._window is not None:
            visible &= places >= lengths - self._window
        return _DecodeGroup(first, end, self._cache.plan_gather(table), self._mask(visible))

    def _plan_chunk(self, row: Scheduled, first: int) -> _Chunk:
        end, num_known = first + row.count, row.first + row.count
        if row.first == 0 and (self._window is None or num_known <= self._window):
            return _Chunk(first, end, num_known, None, None)
        queries, places = torch.arange(row.first, num_known).view(-1, 1), torch.arange(num_known)
        visible = places <= queries
        if self._window is not None:
            visible &= places > queries - self._window
        gather = self._cache.plan_gather([_blocks(row, self._cache.block_size)])
        return _Chunk(first, end, num_known, gather, self._mask(visible))

    def _mask(self, visible: torch.Tensor) -> torch.Tensor | None:
        """What is added to scores: nothing where a place is visible, minus infinity where it is not."""
        if bool(visible.all()):
            return None
        hidden = torch.zeros(visible.shape, dtype=self._cache.dtype).masked_fill_(~visible, -torch.inf)
        return hidden.to(self._cache.device)


def _heads_first(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.transpose(0, 1).unsqueeze(0)


def _num_blocks(row: Scheduled, block_size: int) -> int:
    return -(-(row.first + row.count) // block_size)


def _blocks(row: Scheduled, block_size: int) -> list[int]:
    """The blocks that hold what this row attends to; the sequence may own more, for tokens of later chunks."""
    return row.sequence.blocks[: _num_blocks(row, block_size)]


def _slots(rows: Sequence[Scheduled], block_size: int) -> Iterator[int]:
    """Where each token of the step is written, row after row."""
    for row in rows:
        first, end = row.first, row.first + row.count
        for index in range(first // block_size, _num_blocks(row, block_size)):
            base = (row.sequence.blocks[index] - index) * block_size
            yield from range(base + max(first, index * block_size), base + min(end, (index + 1) * block_size))


def _groups(decodes: Sequence[Scheduled], block_size: int) -> Iterator[tuple[int, int]]:
    """Cut decodes, ordered by length, into ranges that pad little."""
    counts = [_num_blocks(row, block_size) for row in decodes]
    ranges, end = [], len(counts)
    while end:
        first, wasted = end - 1, 0
        while first and wasted + counts[end - 1] - counts[first - 1] <= _MAX_WASTED_BLOCKS:
            first -= 1
            wasted += counts[end - 1] - counts[first]
        ranges.append((first, end))
        end = first
    return reversed(ranges)
