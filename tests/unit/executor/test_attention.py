"""Attention over blocks against the formula, token by token, however rows are tiled, grouped and shared."""

from __future__ import annotations

import pytest
import torch

from contract.engine_contract import request
from models_fixture import tiny_model
from weir_executor.paged import attention as module
from weir_executor.paged.attention import TorchAttention
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.flat_batch import in_row_order
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.config import LayerAttention
from weir_executor.paged.model.registry import load_config
from weir_executor.paged.sequence import LiveRequest, Sequence

_BLOCK, _LAYER, _HEADS = 4, 1, 6


class _Bench:
    """Sequences whose queries, keys and values are random, and what attention makes of each of their tokens."""

    def __init__(self, window: int | None, softcap: float | None = None) -> None:
        config = load_config(tiny_model("llama3"))
        self.cache = KvCache(config, 200, _BLOCK, torch.float32, torch.device("cpu"))
        self.scoring = LayerAttention(0.4, window, softcap)
        # The layers before and after see otherwise, in the same step.
        self.attention = TorchAttention(self.cache, [LayerAttention(1.0), self.scoring, LayerAttention(1.0, window=3)])
        self.tokens: dict[int, tuple[torch.Tensor, ...]] = {}

    def sequence(self, key: int, length: int, blocks: list[int], like: tuple[int, int] | None = None) -> Sequence:
        """Of `length` tokens; `like` names a sequence and how many of its first tokens this one begins with."""
        generator, dim = torch.Generator().manual_seed(key), self.cache.head_dim
        parts = [torch.randn((length, heads, dim), generator=generator) for heads in (_HEADS, 2, 2)]
        if like is not None:
            for part, other in zip(parts, self.tokens[like[0]], strict=True):
                part[: like[1]] = other[: like[1]]
        self.tokens[key] = tuple(parts)
        live = LiveRequest(request(key, [1] * length), key, frozenset(), shares_blocks=False, submitted_at=0.0)
        return Sequence(live, 0, [1] * length, [], blocks=blocks)

    def check(self, *scheduled: Scheduled) -> None:
        """Attend one step and compare all of its rows."""
        rows = in_row_order(scheduled)
        queries, keys, values = (
            torch.cat([self.tokens[r.sequence.live.key][i][r.first : r.first + r.count] for r in rows])
            for i in range(3)
        )
        self.attention.plan(rows)
        found = self.attention.attend(_LAYER, queries, keys, values)
        torch.testing.assert_close(found, torch.cat([self._expected(row) for row in rows]))

    def _expected(self, row: Scheduled) -> torch.Tensor:
        queries, keys, values = self.tokens[row.sequence.live.key]
        outs = []
        for place in range(row.first, row.first + row.count):
            oldest = max(0, place + 1 - self.scoring.window) if self.scoring.window else 0
            seen = slice(oldest, place + 1)
            k, v = (part[seen].repeat_interleave(_HEADS // 2, dim=1) for part in (keys, values))
            scores = torch.einsum("hd,thd->ht", queries[place], k) * self.scoring.scale
            if self.scoring.softcap is not None:
                scores = self.scoring.softcap * (scores / self.scoring.softcap).tanh()
            outs.append(torch.einsum("ht,thd->hd", scores.softmax(-1), v))
        return torch.stack(outs)


@pytest.fixture(
    params=[(None, None), (9, None), (60, None), (None, 0.7), (9, 0.7)],
    ids=["full", "window9", "window60", "capped", "window9-capped"],
)
def bench(request: pytest.FixtureRequest) -> _Bench:
    return _Bench(*request.param)


def test_a_chunk_of_more_than_a_tile(bench: _Bench) -> None:
    sequence = bench.sequence(1, 300, list(range(75))[::-1])
    bench.check(Scheduled(sequence, 0, 135))
    bench.check(Scheduled(sequence, 135, 165))


@pytest.mark.parametrize("gathered_blocks", [1, 12, 1000])
def test_decodes_of_many_lengths(bench: _Bench, gathered_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grain = module._Grain(gathered_blocks * bench.cache.layer_block_bytes, 16)
    monkeypatch.setattr(bench.attention, "_grain", grain)
    lengths = (1, 30, 2, 31, 77, 5)
    sequences = [bench.sequence(key, n, list(range(20 * key, 20 * key + 20))) for key, n in enumerate(lengths)]
    for sequence, length in zip(sequences, lengths, strict=True):
        if length > 1:
            bench.check(Scheduled(sequence, 0, length - 1))
    bench.check(*(Scheduled(sequence, length - 1, 1) for sequence, length in zip(sequences, lengths, strict=True)))


def test_sequences_that_begin_alike_beside_one_that_does_not(bench: _Bench) -> None:
    """Two share five blocks, a third only two of them; a fourth stands alone, and a fifth brings a chunk."""
    one = bench.sequence(1, 40, list(range(10)))
    two = bench.sequence(2, 33, [*range(5), *range(20, 24), 24], like=(1, 20))
    three = bench.sequence(3, 26, [0, 1, *range(30, 35)], like=(1, 8))
    four = bench.sequence(4, 29, list(range(40, 48)))
    five = bench.sequence(5, 12, list(range(50, 53)))
    for sequence, computed in ((one, 0), (two, 20), (three, 8), (four, 0)):
        bench.check(Scheduled(sequence, computed, len(sequence.token_ids) - 1 - computed))
    last = [Scheduled(sequence, len(sequence.token_ids) - 1, 1) for sequence in (four, two, three, one)]
    bench.check(Scheduled(five, 0, 12), *last)
    bench.check(last[1], last[3])


def test_row_order_puts_alike_beginnings_side_by_side_and_shorter_rows_first() -> None:
    bench = _Bench(None)
    shapes = [(1, 9, [7, 8, 9]), (2, 30, [1] * 8), (3, 6, [3, 4]), (4, 10, [7, 8, 5]), (5, 3, [6])]
    rows = [Scheduled(bench.sequence(key, n, blocks), n - 1, 1) for key, n, blocks in shapes]
    chunk = Scheduled(bench.sequence(6, 5, [7, 2]), 0, 5)
    assert [row.sequence.live.key for row in in_row_order([chunk, *rows])] == [5, 3, 2, 1, 4, 6]


def test_decodes_are_cut_where_beginnings_differ_gathers_grow_or_padding_wastes() -> None:
    alone = [[10 * key, *range(1000, 1000 + more)] for key, more in enumerate((0, 1, 1, 70))]
    family = [[500, 501, 502, own] for own in (1, 2, 3)]
    assert list(module._groups(alone, 1000)) == [(0, 3), (3, 4)]
    assert list(module._groups(alone[:3], 4)) == [(0, 1), (1, 3)]
    assert list(module._groups([*alone[:3], *family], 1000)) == [(0, 3), (3, 6)]
    assert list(module._groups(family, 2)) == [(0, 1), (1, 3)]  # what is shared is not gathered again
    assert list(module._groups([], 4)) == []
