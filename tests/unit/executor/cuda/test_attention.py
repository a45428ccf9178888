"""The attention kernel against the formula in float32, token by token: ragged rows, scattered blocks, every option."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch

from models_fixture import tiny_model
from weir_executor.paged.cuda import attention as module
from weir_executor.paged.cuda.attention import TritonAttention, max_numbers, num_splits
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.config import LayerAttention
from weir_executor.paged.model.registry import load_config

_NUM_BLOCKS, _LAYERS = 64, 3
_TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True, slots=True)
class _Row:
    first: int
    count: int
    blocks: list[int]


class _Bench:
    """A cache of random keys and values, rows over it, and what the formula makes of their queries."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        scoring: LayerAttention,
        *,
        heads: tuple[int, int] = (6, 2),
        head_dim: int = 16,
        block_size: int = 4,
    ) -> None:
        self.heads, self.scoring = heads, scoring
        config = replace(
            load_config(tiny_model("llama3")), num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim
        )
        self.cache = KvCache(config, _NUM_BLOCKS, block_size, dtype, device)
        self.generator = torch.Generator().manual_seed(3)
        self.layer = _LAYERS - 1
        for blocks in self.cache.layer_blocks(self.layer):
            blocks.copy_(self.random(*blocks.shape))
        numbers = max_numbers(max_tokens=200, max_rows=32, max_blocks=_NUM_BLOCKS)
        self.attention = TritonAttention(self.cache, heads[0], [scoring] * _LAYERS, numbers)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.cache.dtype).to(self.cache.device)

    def rows(self, *shapes: tuple[int, int]) -> list[_Row]:
        """(first, count) each, over blocks in no order."""
        free, size = random.Random(0).sample(range(_NUM_BLOCKS), _NUM_BLOCKS), self.cache.block_size
        return [_Row(first, count, [free.pop() for _ in range(-(-(first + count) // size))]) for first, count in shapes]

    def check(self, *shapes: tuple[int, int]) -> None:
        rows = self.rows(*shapes)
        tokens = sum(row.count for row in rows)
        # As a fused projection leaves them: parts of one tensor, a token's heads in a row.
        qkv = self.random(tokens, self.heads[0] + 2 * self.heads[1], self.cache.head_dim)
        queries, keys, values = torch.split(qkv, [self.heads[0], self.heads[1], self.heads[1]], dim=1)
        self.attention.plan(rows)
        found = self.attention.attend(self.layer, queries, keys, values)
        expected = self._expected(rows, queries.float(), keys.float(), values.float())
        torch.testing.assert_close(
            found.float(), expected, rtol=0.0, atol=_TOLERANCE[self.cache.dtype], msg=lambda m: f"{shapes}: {m}"
        )

    def _expected(
        self, rows: list[_Row], queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        outs, token = [], 0
        cached = [blocks.float() for blocks in self.cache.layer_blocks(self.layer)]
        for row in rows:
            k, v = (blocks[row.blocks].transpose(1, 2).flatten(0, 1)[: row.first + row.count] for blocks in cached)
            new = slice(token, token + row.count)
            torch.testing.assert_close(k[row.first :], keys[new])  # what the step wrote
            torch.testing.assert_close(v[row.first :], values[new])
            outs += [self._attend(queries[token + i], k, v, row.first + i) for i in range(row.count)]
            token += row.count
        return torch.stack(outs)

    def _attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, place: int) -> torch.Tensor:
        oldest = max(0, place + 1 - self.scoring.window) if self.scoring.window else 0
        group = self.heads[0] // self.heads[1]
        k, v = (part[oldest : place + 1].repeat_interleave(group, dim=1) for part in (keys, values))
        scores = torch.einsum("hd,thd->ht", query, k) * self.scoring.scale
        if self.scoring.softcap:
            scores = self.scoring.softcap * torch.tanh(scores / self.scoring.softcap)
        return torch.einsum("ht,thd->hd", scores.softmax(-1), v)


_SCORING = {
    "full": LayerAttention(0.25),
    "window": LayerAttention(0.25, window=9),
    "softcap": LayerAttention(0.7, softcap=2.0),
    "both": LayerAttention(0.5, window=21, softcap=3.0),
}


@pytest.mark.parametrize("scoring", _SCORING.values(), ids=_SCORING.keys())
def test_decodes_and_chunks_of_all_lengths(device: torch.device, scoring: LayerAttention) -> None:
    bench = _Bench(device, torch.float32, scoring)
    bench.check((0, 1), (39, 1), (7, 1), (80, 1), (0, 23), (33, 9))


def test_every_dtype(device: torch.device, dtype: torch.dtype) -> None:
    bench = _Bench(device, dtype, _SCORING["both"])
    bench.check((0, 1), (50, 1), (18, 12))


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (14, 2), (20, 1)], ids=str)
def test_every_grouping_of_heads(device: torch.device, heads: tuple[int, int]) -> None:
    bench = _Bench(device, torch.float32, _SCORING["full"], heads=heads)
    bench.check((40, 1), (3, 1), (5, 7))


@pytest.mark.parametrize(("head_dim", "block_size"), [(8, 1), (12, 16), (32, 6)])
def test_every_size_of_heads_and_blocks(device: torch.device, head_dim: int, block_size: int) -> None:
    bench = _Bench(device, torch.float32, _SCORING["window"], head_dim=head_dim, block_size=block_size)
    bench.check((18, 1), (2, 1), (9, 5))


def test_drafts_are_cut_into_tiles_like_decodes(device: torch.device) -> None:
    """Rows of a few queries that lead the step share the keys' splits with single tokens."""
    bench = _Bench(device, torch.float32, _SCORING["full"])
    bench.check((30, 1), (41, 3), (17, 5), (0, 30))
    assert bench.attention._tables is not None
    assert bench.attention._tables.few_tokens == 9


def test_one_split_and_many(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = _Bench(device, torch.float32, _SCORING["both"])
    for programs in (1, 2, 64):
        monkeypatch.setattr(bench.attention, "_programs", programs)
        bench.check((100, 1))


@pytest.mark.parametrize("seed", range(4))
def test_random_steps(device: torch.device, seed: int) -> None:
    rng = random.Random(seed)
    kv_heads = rng.choice([1, 2, 3])
    window = rng.choice([None, 1, rng.randint(2, 60)])
    bench = _Bench(
        device,
        torch.float32,
        LayerAttention(rng.uniform(0.1, 0.5), window, rng.choice([None, 2.5])),
        heads=(kv_heads * rng.randint(1, 5), kv_heads),
        block_size=rng.choice([2, 5, 8]),
    )
    decodes = [(rng.randint(0, 40), 1) for _ in range(rng.randint(0, 3))]
    bench.check(
        *decodes, *((rng.randint(0, 20), rng.randint(2, 20)) for _ in range(rng.randint(0 if decodes else 1, 2)))
    )


def test_no_more_splits_than_are_wanted_or_can_be_combined() -> None:
    assert [num_splits(8, wanted) for wanted in (1, 15, 16, 264)] == [1, 1, 2, 32]
    assert num_splits(1, 10_000) == module._MOST_SPLITS
